"""Who holds a lease: a process, told apart from every other on any machine, also from later ones with its number."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex


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
