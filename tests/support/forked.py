"""The command line in processes that are cheap to start and die in a chosen way.

They are forked from a server that has imported everything heavy, so a run of a tiny model takes well under a second.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.support.project import Done, Workbench

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded"])

CHANGES = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.utime"})
"""Audit events after which files may be other than before."""


@dataclass(frozen=True)
class Fault:
    """What befalls a process. Events are changes of files below the project, counted from 1."""

    kill_at: int = 0
    """SIGKILL in front of this event."""
    full_from: int = 0
    """From this event on the disk is full: what would make or open a file for writing fails with ENOSPC."""
    largest_file: int = 0
    """No file can grow beyond this many bytes."""
    clock: tuple[float, ...] = ()
    """Seconds by which the wall clock jumps, one after the other, every tenth of a second."""
    user: int = 0
    """Runs as this user."""


def start(bench: Workbench, *arguments: str, fault: Fault | None = None) -> ForkServerProcess:
    """The command line in a process of its own, inside of the project; what it prints goes to `log`."""
    logs = bench.root.parent / "logs"
    logs.mkdir(exist_ok=True)
    logs.chmod(0o777)  # a fault may make the process somebody else
    process = _CONTEXT.Process(target=_child, args=(str(bench.root), arguments, fault or Fault()), daemon=True)
    process.start()
    return process


def call(bench: Workbench, *arguments: str, fault: Fault | None = None) -> Done:
    """The same, waited for."""
    process = start(bench, *arguments, fault=fault)
    return ended(bench, process)


def ended(bench: Workbench, process: ForkServerProcess, seconds: float = 120) -> Done:
    """How a process ends; a hanging one is killed and has the exit code of that."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    files = [Path(f"{_log(bench.root, process.pid)}.{name}") for name in ("out", "err")]
    out, err = (file.read_text("utf-8") if file.exists() else "" for file in files)
    return Done(int(process.exitcode or 0), out, err)


def events_of(bench: Workbench, process: ForkServerProcess) -> int:
    """How many events a process that has ended by itself came to."""
    return int(Path(f"{_log(bench.root, process.pid)}.events").read_text())


def made_by(bench: Workbench, process: ForkServerProcess) -> list[str]:
    """Keys of the artifacts that a process brought to their place, or tried to."""
    path = Path(f"{_log(bench.root, process.pid)}.made")
    return path.read_text().split() if path.exists() else []


def _log(root: Path | str, pid: int | None) -> Path:
    return Path(root).parent / "logs" / str(pid)


def _child(root: str, arguments: tuple[str, ...], fault: Fault) -> None:
    log = _log(root, os.getpid())
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{log}.{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(root)
    counted = _befall(fault, root)
    from latentbench.cli.app import run

    code = run(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{log}.events", "w") as file:
        file.write(str(counted()))
    os._exit(code)  # without the exit handlers of the server


def _befall(fault: Fault, root: str) -> Any:
    """Arranges for the fault; returns a function that tells how many events there were."""
    if fault.user:
        os.setgid(fault.user)
        os.setuid(fault.user)
    if fault.largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest_file, fault.largest_file))
    if fault.clock:
        _jump(fault.clock)
    seen, made = [0], os.open(f"{_log(root, os.getpid())}.made", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if (
            event not in CHANGES
            or not isinstance(args[0], str | os.PathLike)
            or not os.fspath(args[0]).startswith(root)
        ):
            return
        seen[0] += 1
        if event == "os.rename" and "/objects/" in os.fspath(args[1]):
            os.write(made, f"{os.path.basename(args[1])}\n".encode())
        if seen[0] == fault.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if 0 < fault.full_from <= seen[0] and _grows(event, args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(args[0]))

    sys.addaudithook(hook)
    return lambda: seen[0]


def _grows(event: str, args: tuple[Any, ...]) -> bool:
    return event == "os.mkdir" or (event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR)))


def _jump(jumps: tuple[float, ...]) -> None:
    """A wall clock that is set forward and back while the process runs."""
    clock, begin = time.time, time.monotonic()

    def now() -> float:
        return clock() + jumps[int((time.monotonic() - begin) * 10) % len(jumps)]

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size, where this user may mount one; raises PermissionError elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={size} tmpfs '{folder}' 2>/dev/null"):
        raise PermissionError("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        os.system(f"umount -l '{folder}'")
