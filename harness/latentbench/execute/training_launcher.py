"""Training on several devices, seen from the worker, which has a process started for each.

It passes on how far they are, and stops all of them as soon as one is lost. It takes no part in the training itself, so
that nothing it waits for can hang. Should the worker itself be killed, the processes see their standard input close and
end (`harness/latentbench/execute/worker.py`).

Where the devices are those of several machines, all processes but the first are run by whoever runs this worker
(`harness/latentbench/distributed/rank_mailbox.py`). When a machine goes, all start again from the last checkpoint as soon
as another has taken its place.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentbench.core.errors import CellFailed, StoreError
from latentbench.core.progress import Progress, pass_on
from latentbench.core.spec_model import Json
from latentbench.distributed.rank_mailbox import RankEnd, end_of, noted_end, task_file
from latentbench.distributed.worker_process import POLL_SECONDS, Event, EventHandler, Limits, WorkerProcess, kill
from latentbench.execute.job import Job
from latentbench.spec.cells import Cell
from latentbench.store.files import read_json, write_json

PATIENCE_SECONDS = 600.0
"""How long the others wait for a process that is alive and silent. Writing a checkpoint or loading a model takes
less."""
_BLAME_SECONDS, _BLAME_ELSEWHERE_SECONDS = 5.0, 60.0
"""How long the process to blame may take to end after those that only lost it; elsewhere, a cluster has to notice that a
machine is gone."""
_REPLACED = 3
"""So many machines may go during one training: what is trained may be what brings them down."""
OUTCOME = "outcome.json"
"""What the first process says in the end."""
_WORKER = "latentbench.execute.training_worker"
"""Named and not imported: it imports this module for what both must agree on."""


@dataclass(frozen=True)
class RankJob:
    """What one process is to do."""

    job: Job
    """The cells whose SAEs are trained."""
    keys: tuple[str, ...]
    """Stage keys of the SAEs, all of one stream, in the order in which every process takes them."""
    rank: int
    size: int
    patience: float
    """Seconds without a word after which the others are given up."""
    meeting: str = ""
    """Name of the meeting that no other has."""

    @property
    def device(self) -> str:
        """GPUs of one machine are taken by number; a process on another was lent its own, which is the only one it sees.

        CPU processes share one processor.
        """
        return "cpu" if self.job.device == "cpu" else f"cuda:{0 if self.job.spread else self.rank}"

    def to_json(self) -> Json:
        """The task as JSON data."""
        own = {"keys": list(self.keys), "rank": self.rank, "size": self.size, "patience": self.patience}
        return {**own, "meeting": self.meeting, "job": self.job.to_json()}

    @staticmethod
    def from_json(data: Json) -> RankJob:
        """The inverse of `to_json`."""
        own = {name: data[name] for name in ("rank", "size", "patience", "meeting")}
        return RankJob(Job.from_json(data["job"]), tuple(data["keys"]), **own)


@dataclass
class TrainingOutcome:
    """What became of the SAEs, by stage key."""

    failures: dict[str, Exception] = field(default_factory=dict)
    speeds: dict[str, float | None] = field(default_factory=dict)
    """Training tokens per second."""


class _NodeLost(CellFailed):
    """A machine went, and what it was doing can go on elsewhere."""


@dataclass(eq=False)
class _Rank:
    """One of the processes: of this worker, or elsewhere where it has none here."""

    task: RankJob
    folder: Path
    log: Path
    process: WorkerProcess | None = None
    end: RankEnd | None = None
    """How it ended; None while it runs."""

    @property
    def name(self) -> str:
        return f"process {self.task.rank} of {self.task.size} ({self.task.device})"

    @property
    def failed(self) -> bool:
        return self.end is not None and self.end.failed

    def look(self) -> None:
        """Finds out whether it has ended."""
        if self.end is not None:
            return
        if self.process is None:
            self.end = noted_end(self.folder, self.task.rank)
        elif self.process.ended():
            self.end = end_of(self.process, self.log)

    def error(self) -> CellFailed:
        """What its end means for the SAEs it trained."""
        log = f"(log: {self.log.parent.name}/{self.log.name})"
        if self.end is None:  # the others lost it although it is alive: it is the one that is silent
            return CellFailed(f"{self.name} did not answer the others any more {log}")
        kind = _NodeLost if self.end.node_gone else CellFailed
        return kind(f"{self.name} {self.end.why} {log}")


def train_on_devices(
    job: Job,
    cells: dict[str, Cell],
    devices: int,
    progress: Progress,
    report: EventHandler = lambda event: None,
) -> TrainingOutcome:
    """Trains the SAEs with these keys, all of one stream, for their cells. Raises CellFailed when a process is lost."""
    planned = {item.cell: item for item in job.cells}
    together = replace(job, cells=tuple({cell: planned[cell] for cell in cells.values()}.values()))
    for left in reversed(range(_REPLACED + 1)):
        try:
            return _trained(together, tuple(cells), devices, progress, report)
        except _NodeLost as error:
            if not left:
                raise CellFailed(str(error)) from error
            report(Event("note", f"goes on from the last checkpoint where another node is free: {error}"))
    raise AssertionError  # the last attempt returns or raises


def _trained(
    job: Job, keys: tuple[str, ...], devices: int, progress: Progress, report: EventHandler
) -> TrainingOutcome:
    with _folder(job, keys[0]) as folder, _started(job, keys, devices, folder) as ranks:
        if job.spread:
            report(Event("ranks", str(folder)))
        _watch(ranks, progress)
        return _read(folder / OUTCOME)


@contextmanager
def _folder(job: Job, key: str) -> Iterator[Path]:
    """A place for job files and the meeting, readable by this user alone; its name says whose lease it lives by."""
    try:
        (job.store / "tmp").mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=job.store / "tmp", prefix=f"ranks-{key}-")
    except OSError as error:
        raise StoreError(f"cannot write to the store {job.store}: {error.strerror or error}") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(job: Job, keys: tuple[str, ...], devices: int, folder: Path) -> Iterator[list[_Rank]]:
    """The processes at work; whatever happens in the block, none of them outlives it."""
    ranks: list[_Rank] = []
    logs, name = job.results / "logs", f"{time.strftime('%Y%m%d-%H%M%S')}-{os.uname().nodename[:40]}-{os.getpid()}"
    logs.mkdir(parents=True, exist_ok=True)
    limits, meeting = Limits(job.threads, memory=job.limits.memory), secrets.token_hex(8)
    try:
        for rank in range(devices):
            task = RankJob(job, keys, rank, devices, PATIENCE_SECONDS, meeting)
            file, log = task_file(folder, rank), logs / f"{name}-{keys[0][:8]}-rank{rank}.log"
            write_json(file, {**task.to_json(), "log": log.name})
            ranks.append(_Rank(task, folder, log))
            if rank == 0 or not job.spread:
                ranks[-1].process = WorkerProcess(file, log, limits, _WORKER)
        yield ranks
    finally:
        kill(rank.process for rank in ranks if rank.process)


def _watch(ranks: list[_Rank], progress: Progress) -> None:
    """Until all have ended well. Raises CellFailed that names the process that did not, and its log."""
    first, lost_since = ranks[0].process, None
    assert first is not None
    patience = _BLAME_ELSEWHERE_SECONDS if ranks[0].task.job.spread else _BLAME_SECONDS
    while any(rank.end is None for rank in ranks):
        time.sleep(POLL_SECONDS)
        for rank in ranks:
            rank.look()
        for event in first.new_events():
            if event.progress:
                pass_on(event.progress, progress)
        failed = [rank for rank in ranks if rank.failed]
        if not failed:
            continue
        # The first seen to fail is often one that only lost the culprit: the culprit is waited for a while.
        lost_since = lost_since or time.monotonic()
        blamed = next((rank for rank in failed if rank.end and rank.end.to_blame), None)
        running = [rank for rank in ranks if rank.end is None]
        if blamed or not running or time.monotonic() - lost_since > patience:
            raise (blamed or (running or failed)[0]).error()


def _read(path: Path) -> TrainingOutcome:
    told = read_json(path)
    failures: dict[str, Exception] = {
        key: CellFailed(error["message"] if error["type"] == "CellFailed" else f"{error['type']}: {error['message']}")
        for key, error in told["failures"].items()
    }
    return TrainingOutcome(failures, told["speeds"])
