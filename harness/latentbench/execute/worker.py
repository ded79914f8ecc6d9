"""`python -m latentbench.execute.worker JOB.json`: computes a job's cells and writes their records.

Events go to standard output, everything else to standard error. The exit code is 0 when every cell has a record,
whatever its status. Standard input is a pipe that its parent never writes to: when it closes, the parent is gone,
nobody wants the rest, and the worker ends.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from latentbench.core.errors import LatentbenchError
from latentbench.distributed.worker_process import Event, EventHandler
from latentbench.execute.job import Job
from latentbench.store.files import read_json

_GRACE_SECONDS = 5.0
"""What an orphaned worker may take to release its leases."""


def main(path: str) -> int:
    """Runs the job in the file at `path`."""

    def work(report: EventHandler) -> None:
        job = Job.from_json(read_json(Path(path)))
        from latentbench.execute.job_runner import run_job  # loads torch, by then the parent is watched

        run_job(job, report)

    return serve(work)


def serve(work: Callable[[EventHandler], None], grace: float = _GRACE_SECONDS) -> int:
    """Does `work` under the contract above and gives the exit code. An orphan has `grace` seconds to tidy up.

    To be called before anything heavy is imported: until then nobody notices that the parent is gone.
    """
    signal.signal(signal.SIGTERM, _stop)
    _end_with_parent(grace)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print; only events may reach the parent

    def report(event: Event) -> None:
        if event.kind == "progress" and not _takes_more(output.fileno()):
            return  # whoever shows it is slow or stopped, which must not stop the work
        try:
            output.write(event.line() + "\n")
        except BrokenPipeError:
            raise SystemExit(1) from None  # the parent is gone: nobody wants the rest

    try:
        work(report)
    except LatentbenchError as error:
        print(f"latentbench: {error}", file=sys.stderr)
        return 1
    return 0


def _takes_more(pipe: int) -> bool:
    """Whether a line can be written without waiting for the reader: a pipe is ready when it takes 4,096 bytes at once."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    return bool(poll.poll(0))


def _end_with_parent(grace: float) -> None:
    """Watches the parent's end of standard input, which is then empty for everybody else.

    The pipe closes however the parent ends, also by SIGKILL, which the parent cannot tell anybody about.
    """
    pipe = os.dup(sys.stdin.fileno())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os.killpg(os.getpgid(0), signal.SIGTERM)
        time.sleep(grace)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    if stat.S_ISFIFO(os.fstat(pipe).st_mode):  # started by hand, it has a terminal instead
        threading.Thread(target=watch, daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    """An exception, so that leases and drafts are given up on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
