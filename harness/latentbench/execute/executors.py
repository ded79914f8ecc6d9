"""The `local` and `inline` executors, and what every executor does when a worker is lost. Nothing here loads torch.

`local`: every group of cells in a process of its own. A process that raises, hangs, is killed or outgrows its memory
costs only itself: when a group is lost, its unfinished cells are run again one by one, and a cell that is lost alone
gets a record that says so. `inline`: in this process, for debuggers and tests; it cannot outlive a crash or enforce a
limit.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from latentbench.core.errors import RefusedFile
from latentbench.distributed.worker_process import POLL_SECONDS, Event, EventHandler, WorkerFailure, WorkerProcess, stop
from latentbench.execute.cell_record import build_record
from latentbench.execute.job import Job, JobCell
from latentbench.records.record import Failure, Record, RunCost
from latentbench.records.results import find_record, read_record, record_path, write_record
from latentbench.store.files import write_json

_numbers = count(1)
"""So that no two jobs of this process have one file."""

Stamp = tuple[int, int] | None
"""Inode and time of a record's file. Compared for being different only, so that clocks need not agree."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was handed to a worker."""

    job: Job
    file: Path
    """The job as JSON, for the worker."""
    before: tuple[Stamp, ...]
    """The records that there were of its cells when it was handed over, by which a new one is known."""

    @property
    def log(self) -> Path:
        """Where the worker's standard error goes."""
        return self.file.with_suffix(".log")

    def left(self) -> list[JobCell]:
        """The cells that have neither numbers nor a failed record newer than the job."""
        pairs = zip(self.job.cells, self.before, strict=True)
        return [item for item, before in pairs if not _finished(self.job, item, before)]

    def settle(self, loss: WorkerFailure, report: EventHandler) -> list[Job]:
        """After the worker has ended: writes what is owed and returns the jobs to run in its place.

        `loss` is how the cells were lost that have no new record. Nobody knows which cell of a group ended its worker,
        so each gets one more run, alone; only a cell that is lost alone is blamed.
        """
        left = self.left()
        _name_log(self.job, [item for item in self.job.cells if item not in left], self.log)
        if not left:
            return []
        if len(self.job.cells) > 1:
            report(Event("note", f"a worker was lost ({loss.message}); its {len(left)} cells are run one by one"))
            return [replace(self.job, cells=(item,)) for item in left]
        write_lost(self.job, left[0], loss, self.log)
        report(Event("done", left[0].cell.title, status=loss.status))
        return []


def submit(job: Job, logs: Path) -> SubmittedJob:
    """Writes the job's file below `logs` under a name of its own."""
    file = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.uname().nodename[:40]}-{os.getpid()}-{next(_numbers):03}.json"
    write_json(file, job.to_json())
    return SubmittedJob(job, file, tuple(_stamp(job, item) for item in job.cells))


def write_lost(job: Job, item: JobCell, loss: WorkerFailure, log: Path) -> None:
    """Writes the record of a cell that could not write its own."""
    error = Failure(stage="worker", type=loss.type, message=loss.message, log=_shown(job, log))
    write_record(
        job.results, item.cell, build_record(job, item, None, status=loss.status, error=error, cost=RunCost()), {}
    )


class InlineExecutor:
    """Runs jobs one after the other in this process."""

    def run(self, jobs: list[Job], report: EventHandler) -> None:
        """Runs all jobs; every cell has a record afterwards unless the process itself ends."""
        from latentbench.execute.job_runner import run_job

        for job in jobs:
            run_job(job, report)


Running = dict[WorkerProcess, SubmittedJob]


class LocalExecutor:
    """Runs jobs in subprocesses, at most `workers` at a time."""

    def __init__(self, workers: int, logs: Path) -> None:
        self.workers, self.logs = workers, logs

    def run(self, jobs: list[Job], report: EventHandler) -> None:
        """Runs all jobs; every cell has a record afterwards, whatever happened. Ctrl-C stops the workers."""
        waiting, running = deque(jobs), Running()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    submitted = submit(waiting.popleft(), self.logs)
                    running[WorkerProcess(submitted.file, submitted.log, submitted.job.limits)] = submitted
                time.sleep(POLL_SECONDS)
                for worker in list(running):
                    waiting.extend(_advance(worker, running, report))
        finally:
            stop(running)


def _advance(worker: WorkerProcess, running: Running, report: EventHandler) -> list[Job]:
    """Passes on what a worker told; when it has ended, settles its job and returns what is to be run again."""
    ended = worker.ended()  # before its events are taken: the other way round the last ones could be missed
    for event in worker.new_events():
        report(event)
    return running.pop(worker).settle(worker.loss, report) if ended else []


def _finished(job: Job, item: JobCell, before: Stamp) -> bool:
    """Whether the cell has numbers, or a failed record that is not the one it had before."""
    record = find_record(job.results, item.cell, item.key)
    return record is not None and (record.status == "ok" or _stamp(job, item) != before)


def _name_log(job: Job, items: list[JobCell], log: Path) -> None:
    """Adds the log to the records of cells that failed: the worker that wrote them does not know where it is kept."""
    for item in items:
        record = _read(record_path(job.results, item.cell, item.key))
        if record and record.error and record.error.log is None:
            error = record.error.model_copy(update={"log": _shown(job, log)})
            write_record(job.results, item.cell, record.model_copy(update={"error": error}), {})


def _stamp(job: Job, item: JobCell) -> Stamp:
    try:
        found = record_path(job.results, item.cell, item.key).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(path: Path) -> Record | None:
    try:
        return read_record(path)
    except RefusedFile:
        return None


def _shown(job: Job, log: Path) -> str:
    """The log as records name it: results are looked at on other machines, where only the part below them is the
    same."""
    return str(log.relative_to(job.results)) if log.is_relative_to(job.results) else log.name
