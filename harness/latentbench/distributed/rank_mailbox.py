"""Processes that train together although some of them run on other machines: what is left for each other in a folder.

The worker of a cell knows nothing of clusters. It leaves a task for every process in a folder, asks with an event of
the kind `ranks` that all but the first be run, and reads here how they ended. Whoever hears the event runs them, carries
the address at which they meet (`MEETING`, written by the first process) to where they are, notes how each ended, and
stops those that are left when the folder has gone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from latentbench.core.spec_model import Json
from latentbench.distributed.worker_process import LOST_PEER, WorkerProcess
from latentbench.store.files import read_json, write_json

MEETING = "meeting"
"""File with the place where the processes meet, or that is itself the place."""
_SHOWN = 300
"""Characters of a process's last words that an error repeats."""


@dataclass(frozen=True)
class RankEnd:
    """How one of the processes ended."""

    code: int
    """Exit code; negative for a signal."""
    why: str = ""
    """For people, to follow the name of the process: `was lost: …`, `ended with exit code 3: …`."""
    node_gone: bool = False
    """Whether it went with its machine, which says nothing against what it did."""

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was to do."""
        return self.code != 0

    @property
    def to_blame(self) -> bool:
        """Whether it failed by itself, and not because it lost another."""
        return self.failed and self.code != LOST_PEER

    def plain(self) -> Json:
        """As JSON data."""
        return asdict(self)


def end_of(process: WorkerProcess, log: Path) -> RankEnd:
    """How a process of this machine ended that has ended."""
    code = process.process.wait()
    if code < 0 or process.stopped_for:
        return RankEnd(code or 1, f"was lost: {process.loss.message}")
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return RankEnd(code, f"ended with exit code {code}: {lines[-1][:_SHOWN] if lines else 'it said nothing'}")


def task_file(folder: Path, rank: int) -> Path:
    """The task of a process, as JSON."""
    return folder / f"{rank}.json"


def note_end(folder: Path, rank: int, end: RankEnd) -> None:
    """Leaves word of how a process ended that ran elsewhere."""
    write_json(_end_file(folder, rank), end.plain())


def noted_end(folder: Path, rank: int) -> RankEnd | None:
    """The word that was left; None while the process runs."""
    path = _end_file(folder, rank)
    return RankEnd(**read_json(path)) if path.is_file() else None


def _end_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.end.json"
