"""One worker in a process of its own: started, listened to, held to its limits, stopped.

A worker tells what it does as one JSON object per line on its standard output (`Event`). What it could not tell,
because its process is gone, is a `WorkerFailure`. Every executor that has processes uses this; nothing here knows what
a worker computes, and nothing here loads torch, so that a worker watches its parent before it loads anything heavy.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from latentbench.core.progress import WorkProgress
from latentbench.distributed.progress_meter import OpenWork

POLL_SECONDS = 0.2
"""Between two looks at a worker."""
GRACE_SECONDS = 5.0
"""What a worker that is asked to end may take before it is killed."""
LOST_PEER = 75
"""Exit code of a process that ends because another of its process group does not answer: it is not the one to blame.

The number is `EX_TEMPFAIL` of sysexits.h, which neither Python nor a signal uses.
"""


@dataclass(frozen=True)
class Event:
    """One report of a worker."""

    kind: Literal["progress", "done", "note", "ranks"]
    """`ranks` asks whoever started the worker to run the processes whose files are in a folder
    (`harness/latentbench/distributed/rank_mailbox.py`)."""
    text: str = ""
    """What there is to say, which cell is done, or the folder."""
    status: str = ""
    """How a finished cell ended: ok, failed, timeout or skipped."""
    progress: WorkProgress | None = None
    """How far a piece of work has come."""

    def line(self) -> str:
        """The event as one line of JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if value}, ensure_ascii=False)

    @staticmethod
    def of(data: dict[str, Any]) -> Event:
        """The event of such a line, read. Raises ValueError or TypeError for anything else."""
        event = Event(**data)
        if event.kind not in ("progress", "done", "note", "ranks") or (event.kind == "progress") == (
            event.progress is None
        ):
            raise ValueError(f"there is no event {event.kind!r} of this form")
        return event if event.progress is None else replace(event, progress=WorkProgress.of(data["progress"]))

    @staticmethod
    def parse(line: str) -> Event | None:
        """The event of a line, or None for anything else that reached the worker's output."""
        try:
            data = json.loads(line)
            return Event.of(data) if isinstance(data, dict) else None
        except (ValueError, TypeError, RecursionError):
            return None


@dataclass(frozen=True)
class WorkerFailure:
    """How cells were lost that have no record although their worker has ended."""

    status: Literal["failed", "timeout"]
    type: str
    message: str


EventHandler = Callable[[Event], None]


@dataclass(frozen=True)
class Limits:
    """What a worker may use; None is no limit."""

    threads: int
    timeout: float | None = None
    """Seconds of wall-clock time."""
    memory: int | None = None
    """Bytes resident in its process; what it started itself is not counted."""


class WorkerProcess:
    """`python -m MODULE FILE` in a process group of its own; events come in through a queue.

    The worker holds one end of a pipe whose other end is here: should this process die, the worker ends as well.
    """

    def __init__(self, file: Path, log: Path, limits: Limits, module: str = "latentbench.execute.worker") -> None:
        """`file`: the job as JSON; `log`: where the worker's standard error goes; `module`: what reads the file.

        The module is named and not imported: it stands above this one, and only the process itself pays for loading it.
        """
        self.limits, self.events = limits, queue.Queue[Event]()
        self.stopped_for: WorkerFailure | None = None
        self._open = OpenWork()
        self._started = time.monotonic()
        with log.open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=_environment(limits.threads),
                start_new_session=True,  # a process group of its own: killed as a whole, deaf to the terminal's Ctrl-C
            )
        assert self.process.stdout is not None
        # Read on a thread: a worker whose pipe is full would stand still until somebody looks.
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            event = Event.parse(line)
            if event:
                self.events.put(event)
                if event.progress:
                    self._open.see(event.progress)

    def new_events(self) -> Iterator[Event]:
        """What the worker told since the last call."""
        with suppress(queue.Empty):
            while True:
                yield self.events.get_nowait()

    def ended(self) -> bool:
        """Whether the worker is gone; one that exceeds its limits is stopped first."""
        if self.process.poll() is None and (loss := self._excess()):
            self.stopped_for = loss
            stop([self])
        if self.process.poll() is None:
            return False
        self.signal(signal.SIGKILL)  # children it may have left behind
        self._reader.join(GRACE_SECONDS)  # not for ever: a child with a session of its own may still hold the pipe
        for message in self._open.end():  # what it was at when it was lost
            self.events.put(Event("progress", progress=message))
        return True

    def _excess(self) -> WorkerFailure | None:
        timeout, memory = self.limits.timeout, self.limits.memory
        if timeout is not None and time.monotonic() - self._started > timeout:
            return WorkerFailure("timeout", "Timeout", f"stopped after {timeout:g} s, its timeout")
        if memory is not None and (used := _resident_bytes(self.process.pid)) > memory:
            message = f"stopped at {used / 2**30:.2f} GiB of memory, its limit is {memory / 2**30:.2f} GiB"
            return WorkerFailure("failed", "OutOfMemory", message)
        return None

    @property
    def loss(self) -> WorkerFailure:
        """How cells were lost that have no record although the worker has ended."""
        return self.stopped_for or _loss_of(self.process.wait())

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the worker and all it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def stop(workers: Iterable[WorkerProcess]) -> None:
    """Ends workers: asked first, killed after a grace period, or at once when a second Ctrl-C comes."""
    workers = list(workers)
    for worker in workers:
        worker.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        kill(workers)


def kill(workers: Iterable[WorkerProcess]) -> None:
    """Ends workers at once."""
    for worker in workers:
        worker.signal(signal.SIGKILL)
        worker.process.wait()


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        # OpenMP and numba read these once, when they are loaded.
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        # Without it a torch.py in the current folder would be imported in the library's place.
        "PYTHONSAFEPATH": "1",
    }


def _loss_of(code: int) -> WorkerFailure:
    if code < 0:  # Popen's way to say that a signal ended the process
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return WorkerFailure("failed", "Killed", f"its process was ended by {name}{hint}")
    return WorkerFailure("failed", "WorkerDied", f"its process ended with exit code {code} without writing a record")


def _resident_bytes(pid: int) -> int:
    """Memory of a process in bytes; 0 where /proc does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
