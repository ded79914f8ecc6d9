"""The `local` executor: every group of cells in a process of its own.

A process that raises, hangs, is killed or outgrows its memory costs only itself (`harness/latentbench/execute/lost.py`).
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from latentbench.execute.events import Report
from latentbench.execute.job import Job
from latentbench.execute.lost import Placed, place
from latentbench.execute.process import POLL_SECONDS, WorkerProcess, stop

Running = dict[WorkerProcess, Placed]


class LocalExecutor:
    """Runs jobs in subprocesses, at most `workers` at a time."""

    def __init__(self, workers: int, logs: Path) -> None:
        self.workers, self.logs = workers, logs

    def run(self, jobs: list[Job], report: Report) -> None:
        """Runs all jobs; every cell has a record afterwards, whatever happened. Ctrl-C stops the workers."""
        waiting, running = deque(jobs), Running()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    placed = place(waiting.popleft(), self.logs)
                    running[WorkerProcess(placed.file, placed.log, placed.job.limits)] = placed
                time.sleep(POLL_SECONDS)
                for worker in list(running):
                    waiting.extend(_advance(worker, running, report))
        finally:
            stop(running)


def _advance(worker: WorkerProcess, running: Running, report: Report) -> list[Job]:
    """Passes on what a worker told; when it has ended, settles its job and returns what is to be run again."""
    ended = worker.ended()
    for event in worker.new_events():
        report(event)
    return running.pop(worker).settle(worker.loss, report) if ended else []
