"""Training on several devices, seen from the worker, which starts a process per device.

It passes on how far they are, and stops all of them as soon as one is lost. It takes no part in the training itself, so
that nothing it waits for can hang. Should the worker itself be killed, the processes see their standard input close and
end (`harness/latentbench/execute/worker.py`).
"""

from __future__ import annotations

import os
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
from latentbench.distributed.worker_process import LOST_PEER, POLL_SECONDS, Limits, WorkerProcess, kill
from latentbench.execute.job import Job
from latentbench.spec.cells import Cell
from latentbench.store.files import read_json, write_json

PATIENCE_SECONDS = 600.0
"""How long the others wait for a process that is alive and silent. Writing a checkpoint or loading a model takes
less."""
_BLAME_SECONDS = 5.0
"""How long the process to blame may take to end after those that only lost it."""
_SHOWN = 300
"""Characters of a process's last words that an error repeats."""
MEETING, OUTCOME = "meeting", "outcome.json"
"""Files beside the processes' own: where they meet, and what the first one says in the end."""
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

    @property
    def device(self) -> str:
        """GPUs are taken by number; CPU processes share one processor."""
        return "cpu" if self.job.device == "cpu" else f"cuda:{self.rank}"

    def to_json(self) -> Json:
        """The task as JSON data."""
        own = {"keys": list(self.keys), "rank": self.rank, "size": self.size, "patience": self.patience}
        return {**own, "job": self.job.to_json()}

    @staticmethod
    def from_json(data: Json) -> RankJob:
        """The inverse of `to_json`."""
        own = {name: data[name] for name in ("rank", "size", "patience")}
        return RankJob(Job.from_json(data["job"]), tuple(data["keys"]), **own)


@dataclass
class TrainingOutcome:
    """What became of the SAEs, by stage key."""

    failures: dict[str, Exception] = field(default_factory=dict)
    speeds: dict[str, float | None] = field(default_factory=dict)
    """Training tokens per second."""


@dataclass(frozen=True, eq=False)
class _Rank:
    """One of the processes."""

    task: RankJob
    process: WorkerProcess
    log: Path

    @property
    def name(self) -> str:
        return f"process {self.task.rank} of {self.task.size} ({self.task.device})"

    @property
    def failed(self) -> bool:
        return self.process.process.poll() not in (None, 0)

    @property
    def to_blame(self) -> bool:
        """Whether it failed by itself, and not because it lost another."""
        return self.failed and self.process.process.poll() != LOST_PEER


def train_on_devices(job: Job, cells: dict[str, Cell], devices: int, progress: Progress) -> TrainingOutcome:
    """Trains the SAEs with these keys, all of one stream, for their cells. Raises CellFailed when a process is lost."""
    planned = {item.cell: item for item in job.cells}
    together = replace(job, cells=tuple({cell: planned[cell] for cell in cells.values()}.values()))
    with _folder(job, next(iter(cells))) as folder, _started(together, tuple(cells), devices, folder) as ranks:
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
    ranks: list[_Rank] = []
    """The processes at work; whatever happens in the block, none of them outlives it."""
    logs, name = job.results / "logs", f"{time.strftime('%Y%m%d-%H%M%S')}-{os.uname().nodename[:40]}-{os.getpid()}"
    logs.mkdir(parents=True, exist_ok=True)
    limits = Limits(job.threads, memory=job.limits.memory)
    try:
        for rank in range(devices):
            task = RankJob(job, keys, rank, devices, PATIENCE_SECONDS)
            file, log = folder / f"{rank}.json", logs / f"{name}-{keys[0][:8]}-rank{rank}.log"
            write_json(file, task.to_json())
            ranks.append(_Rank(task, WorkerProcess(file, log, limits, _WORKER), log))
        yield ranks
    finally:
        kill(rank.process for rank in ranks)


def _watch(ranks: list[_Rank], progress: Progress) -> None:
    """Until all have ended well. Raises CellFailed that names the process that did not, and its log."""
    running, lost_since = list(ranks), None
    while running:
        time.sleep(POLL_SECONDS)
        running = [rank for rank in running if not rank.process.ended()]
        for event in ranks[0].process.new_events():
            if event.progress:
                pass_on(event.progress, progress)
        failed = [rank for rank in ranks if rank.failed]
        if not failed:
            continue
        # The first seen to fail is often one that only lost the culprit: the culprit is waited for a while.
        lost_since = lost_since or time.monotonic()
        blamed = next((rank for rank in failed if rank.to_blame), None)
        if blamed or not running or time.monotonic() - lost_since > _BLAME_SECONDS:
            raise CellFailed(_why(blamed or (running or failed)[0]))


def _why(rank: _Rank) -> str:
    code = rank.process.process.poll()
    log = f"(log: {rank.log.parent.name}/{rank.log.name})"
    if code is None:  # the others lost it although it is alive: it is the one that is silent
        return f"{rank.name} did not answer the others any more {log}"
    if code < 0 or rank.process.stopped_for:
        return f"{rank.name} was lost: {rank.process.loss.message} {log}"
    lines = rank.log.read_text("utf-8", errors="replace").strip().splitlines()
    return f"{rank.name} ended with exit code {code}: {lines[-1][:_SHOWN] if lines else 'it said nothing'} {log}"


def _read(path: Path) -> TrainingOutcome:
    told = read_json(path)
    failures: dict[str, Exception] = {
        key: CellFailed(error["message"] if error["type"] == "CellFailed" else f"{error['type']}: {error['message']}")
        for key, error in told["failures"].items()
    }
    return TrainingOutcome(failures, told["speeds"])
