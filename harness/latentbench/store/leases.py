"""Leases: who is making what, so that live workers never make the same content twice, and who the workers are.

    leases/<name>.<number>     whose lease it is; the file is created exclusively, so one worker alone gets it
    workers/<token>            one file per process that holds leases, with a count that its heartbeat raises

Nothing here needs file locks or clocks that agree. A worker is dead when its process is known to have ended (on the
same machine), or when an observer has watched its count stand still for `expiry` seconds of its own monotonic clock.
A dead worker's lease is not removed and made again, which two observers could do to each other: it is succeeded by the
next number, which again only one can create. Whoever has created a file then looks once more, and withdraws
if there is another that it did not know to be dead. Of two workers the later one to look sees the other, so at most
one stays.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from latentbench.core.errors import StoreError


@dataclass(frozen=True)
class Owner:
    """A process that works on a store."""

    host: str
    """Name of the machine, for people."""
    machine: str
    """Digest of what tells whether a process number means the same process here: boot, name and process namespace."""
    pid: int
    started: str
    """Start time of the process in ticks since boot; process numbers are used again."""
    token: str
    """Unlike that of any other owner."""

    @staticmethod
    def here() -> Owner:
        """This process, as a new owner."""
        return Owner(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or "", token_hex(8))

    @property
    def gone(self) -> bool:
        """Whether the process is known to have ended; False for processes of other machines."""
        return self.machine == _machine() and _started(self.pid) != self.started

    def line(self) -> bytes:
        """The owner as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def parse(content: bytes) -> Owner | None:
        """The inverse of `line`, whatever follows it; None for anything else."""
        try:
            return Owner(**json.loads(content.partition(b"\n")[0]))
        except (ValueError, TypeError, RecursionError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@lru_cache(maxsize=1)
def _machine() -> str:
    facts = [socket.gethostname()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text("ascii"), os.readlink("/proc/self/ns/pid")]
    return sha256("\n".join(facts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """Start time of a process; None when there is no such process, empty where only its existence can be told."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return _exists(pid)
    state, *fields = status.rpartition(")")[2].split()  # the name before it may hold anything
    # What has ended but was not yet waited for (Z, X) holds nothing any more. The start time is the 22nd field of all.
    return None if state in "ZX" else fields[18]


def _exists(pid: int) -> str | None:
    if Path("/proc/self").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


EXPIRY_SECONDS, BEAT_SECONDS = 60.0, 5.0
"""Twelve beats may fail before a worker counts as dead: a file system that stalls for a while must not cost it its work."""


@dataclass(frozen=True)
class Held:
    """A lease as others see it."""

    file: str
    name: str
    number: int
    token: str
    """Its owner's; empty while it is being written."""
    keys: frozenset[str]
    """Artifacts that the holder needs besides the one it makes."""


@dataclass
class _Watch:
    """How long a worker has been seen without a sign of life."""

    count: bytes
    looked: float
    still: float = 0.0


class Leases:
    """The leases of one store, as one process takes and sees them."""

    def __init__(self, root: Path, expiry: float = EXPIRY_SECONDS, beat: float = BEAT_SECONDS) -> None:
        self.root, self.expiry, self.beat = root, expiry, beat
        self._watched: dict[str, _Watch] = {}
        self._mine: dict[str, Path] = {}
        self._heart: _Heart | None = None
        self._lock = threading.RLock()

    def take(self, names: Iterable[str], keys: Iterable[str] = ()) -> set[str]:
        """Takes, in order, those of the leases that no live worker has; they are this process's until released.

        `keys` are artifacts that must not be evicted meanwhile. Raises StoreError when the store cannot be written.
        """
        content, taken = "\n".join(keys), set[str]()
        try:
            files = self._files()
            for name in sorted(set(names)):
                if self._take(name, files, content):
                    taken.add(name)
        except OSError as error:
            self.release(taken)
            raise StoreError(f"cannot take a lease in {self.root}: {error.strerror or error}") from error
        except BaseException:
            self.release(taken)
            raise
        self._rest()
        return taken

    def release(self, names: Iterable[str]) -> None:
        """Gives leases of this process back."""
        with self._lock:
            for name in list(names):
                path = self._mine.pop(name, None)
                if path is not None:
                    self._withdraw(path)
        self._rest()

    @contextmanager
    def some(self, names: Iterable[str], keys: Iterable[str] = ()) -> Iterator[set[str]]:
        """Those of the leases that could be taken; they are released when the block ends."""
        taken = self.take(names, keys)
        try:
            yield taken
        finally:
            self.release(taken)

    def live(self) -> list[Held]:
        """Every lease whose owner is not known to be dead."""
        return [held for held in self.all() if not self._dead(held)]

    def all(self) -> list[Held]:
        """Every lease there is, also those that the dead have left."""
        return list(self._held(self._files()))

    def owner(self, held: Held) -> Owner | None:
        """Who holds a lease; None when it has gone."""
        return Owner.parse(self._count(held.token) or b"")

    def sweep(self) -> int:
        """Removes what dead workers have left behind; returns how many files that were."""
        dead = [self.root / "leases" / held.file for held in self.all() if self._dead(held)]
        workers = (path for path in (self.root / "workers").glob("*") if self._gone(path.name))
        swept = [*dead, *workers]
        for path in swept:
            path.unlink(missing_ok=True)
        return len(swept)

    def _take(self, name: str, files: list[str], content: str) -> bool:
        with self._lock:
            # `files` was listed before: a lease that is not in it is one that somebody created meanwhile.
            known = set(self._held(files, name))
            if name in self._mine or not all(map(self._dead, known)):
                return False
            path = self._create(name, 1 + max((held.number for held in known), default=0), content)
            if path is None:
                return False
            # Two that saw the same dead lease create the same number, and one fails. Two that saw different ones create
            # different numbers, and at least the later of them to look again sees the other's file here.
            if any(held not in known and held.file != path.name for held in self._held(self._files(), name)):
                self._withdraw(path)
                return False
            self._mine[name] = path
        # Only now: while the files of the dead stand, whoever looks sees the same highest number.
        for held in known:
            (self.root / "leases" / held.file).unlink(missing_ok=True)
        return True

    def _create(self, name: str, number: int, content: str) -> Path | None:
        """The new lease file, or None when another process was faster."""
        (self.root / "leases").mkdir(parents=True, exist_ok=True)
        # Before the lease: one whose owner has no file among the workers would look as if its owner were dead.
        if self._heart is None:
            self._heart = _Heart(self.root / "workers", self.beat)
        path = self.root / "leases" / f"{name}.{number}"
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        try:
            os.write(handle, f"{self._heart.owner.token}\n{content}".encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        return path

    def _withdraw(self, path: Path) -> None:
        """Removes a lease file unless it has become another's since."""
        with suppress(OSError):
            held = _read(path)
            # A fork has its parent's leases in memory, and none of them is its own: the process number tells.
            if held and self._heart and held.token == self._heart.owner.token and self._heart.owner.pid == os.getpid():
                path.unlink()

    def _rest(self) -> None:
        """Stops the heartbeat when there is nothing to keep alive."""
        with self._lock:
            if not self._mine and self._heart is not None:
                self._heart.stop()
                self._heart = None

    def _files(self) -> list[str]:
        try:
            return os.listdir(self.root / "leases")
        except FileNotFoundError:
            return []

    def _held(self, files: list[str], name: str | None = None) -> Iterator[Held]:
        for file in files:
            if name is None or file.rpartition(".")[0] == name:
                held = _read(self.root / "leases" / file)
                if held:
                    yield held

    def _dead(self, held: Held) -> bool:
        if not held.token:  # its owner writes its name next, unless it died between the two
            return self._stands_still(held.file, b"")
        return self._gone(held.token)

    def _gone(self, token: str) -> bool:
        count = self._count(token)
        owner = Owner.parse(count) if count else None
        return count is None or (owner is not None and owner.gone) or self._stands_still(token, count)

    def _stands_still(self, token: str, count: bytes) -> bool:
        """Whether the count has not moved for `expiry` seconds of watching."""
        now = time.monotonic()
        watch = self._watched.get(token)
        if watch is None or watch.count != count:
            self._watched[token] = _Watch(count, now)
            return False
        # Time in which nobody looked, because this process or its machine was asleep, says nothing about the other.
        watch.still += min(now - watch.looked, self.beat)
        watch.looked = now
        return watch.still >= self.expiry

    def _count(self, token: str) -> bytes | None:
        try:
            return (self.root / "workers" / token).read_bytes()
        except (OSError, ValueError):
            return None


class _Heart:
    """A thread that raises the count in this process's file as long as it lives."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.owner, self.seconds = Owner.here(), seconds
        self._path, self._stopped, self._beats = folder / self.owner.token, threading.Event(), 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            self._beat()
        except OSError:
            os.close(self._file)
            self._path.unlink(missing_ok=True)
            raise
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the heartbeat and removes the file."""
        self._stopped.set()
        self._thread.join()
        with suppress(OSError):
            os.close(self._file)
            if self.owner.pid == os.getpid():  # in a fork it is the parent's, who lives on by it
                self._path.unlink()

    def _run(self) -> None:
        while not self._stopped.wait(self.seconds):
            with suppress(OSError):  # a disk that is full now may not be so at the next beat
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        # Of the same length every time, so that it overwrites the last one whole: nothing is truncated in between.
        os.pwrite(self._file, self.owner.line() + f"{self._beats:020}\n".encode(), 0)
        os.fsync(self._file)  # over a network, others see it only then


def _read(path: Path) -> Held | None:
    """A lease from its file; None when it has just gone."""
    try:
        token, _, keys = path.read_text("utf-8", errors="replace").partition("\n")
    except OSError:
        return None
    name, _, number = path.name.rpartition(".")
    if not number.isdigit():
        return None
    return Held(path.name, name, int(number), token if token.isalnum() else "", frozenset(keys.split()))
