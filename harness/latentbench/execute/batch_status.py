"""How far a batch has come, whoever works on it, and how long the rest will take.

The state is what records and leases say, read again and again. The time left is a guess, and called one: it goes by
what earlier records of like cells say they took. A record counts a stage that several cells shared in full. So the
cells of a group are estimated by their slowest, and groups are added up. Other machines, other loads and other group
sizes are not accounted for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentbench.core.progress import WorkProgress
from latentbench.core.spec_model import Json
from latentbench.core.text import plural
from latentbench.distributed.progress_meter import KEY_DIGITS
from latentbench.execute.job import groups_of
from latentbench.execute.progress_board import BoardReader
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.records.record import Record, Status
from latentbench.records.results import RECORDS, find_record
from latentbench.store.store import Store


@dataclass(frozen=True)
class BatchState:
    """Where the cells of a batch stand."""

    done: int
    without_numbers: dict[str, Record]
    """By title, cells whose last run ended without numbers."""
    at_work: dict[str, str]
    """By title, cells that some worker makes a stage of now, and which worker; shared stages count for all their
    cells."""
    left: Plan
    """The cells that have no numbers yet."""
    work: tuple[WorkProgress, ...] = ()
    """How far what is done for them is, as the runs say that do it."""

    @property
    def waiting(self) -> int:
        """Cells nobody has touched."""
        return len({item.cell.title for item in self.left.cells} - self.without_numbers.keys() - self.at_work.keys())


@dataclass
class BatchWatch:
    """Looks at a batch; a cell that has been seen with numbers is not looked at again, since its record stays."""

    plan: Plan
    store: Store
    results: Path
    _done: set[str] = field(default_factory=set)
    """Keys of the cells that have been seen with numbers."""
    _boards: BoardReader = field(init=False)

    def __post_init__(self) -> None:
        self._boards = BoardReader(self.results)

    def look(self) -> BatchState:
        """Where the batch stands now."""
        ended: dict[str, Record] = {}
        for item in self.plan.cells:
            record = None if item.key in self._done else find_record(self.results, item.cell, item.key)
            if record and record.status == "ok":
                self._done.add(item.key)
            elif record:
                ended[item.cell.title] = record
        left = tuple(replace(item, run=True) for item in self.plan.cells if item.key not in self._done)
        done = len(self.plan.cells) - len(left)
        return BatchState(done, ended, self._at_work(left), Plan(left), tuple(self._work(left)))

    def _work(self, left: tuple[PlannedCell, ...]) -> Iterator[WorkProgress]:
        """The work that is done for some of these cells."""
        keys = {item.key[:KEY_DIGITS] for item in left}
        return (message for message in self._boards.look() if keys.intersection(message.cells))

    def _at_work(self, left: tuple[PlannedCell, ...]) -> dict[str, str]:
        """By title, the cells with a stage that some worker holds the lease of, and who that is."""
        leases = self.store.leases
        holders = {held.name: str(leases.owner(held) or "a worker") for held in leases.live()}
        found = {}
        for item in left:
            names = (f"{step.stage.kind}-{step.stage.key}" for step in item.steps)
            holder = next((holders[name] for name in names if name in holders), None)
            if holder:
                found[item.cell.title] = holder
        return found


def until_done(watch: BatchWatch, show: Callable[[BatchState], None], pause: Callable[[], None]) -> BatchState:
    """Shows the state again and again until every cell has numbers; what it was at last."""
    state = watch.look()
    show(state)
    while state.left.cells:
        pause()
        state = watch.look()
        show(state)
    return state


def statuses(state: BatchState) -> dict[Status, int]:
    """How many cells there are of each way to end without numbers."""
    found: dict[Status, int] = {}
    for record in state.without_numbers.values():
        found[record.status] = found.get(record.status, 0) + 1
    return found


Seconds = Mapping[str, float]
"""By stage of the work, as in a record's `cost.wall_seconds`."""


@dataclass(frozen=True)
class Estimate:
    """Wall-clock time until nothing is left to run."""

    seconds: float
    workers: int
    known: int
    """Cells that are like one with a record."""
    unknown: int
    """Cells of which nothing is known; they are not in `seconds`."""

    def __str__(self) -> str:
        if not self.known:
            return f"time left: unknown, no record of {'a like cell' if self.unknown == 1 else 'like cells'} yet"
        new = f"; nothing is known of {plural(self.unknown, 'further cell')}" if self.unknown else ""
        pace = plural(self.workers, "worker")
        return f"time left: about {duration(self.seconds)} with {pace}, going by records of like cells{new}"


def estimate(plan: Plan, results: Path, workers: int) -> Estimate | None:
    """The time the cells to run will take on so many workers; None when there are none.

    It is the larger of two lower bounds: the work of all groups divided among the workers, and the longest group alone.
    """
    if not plan.to_run:
        return None
    earlier = {name: _earlier(results, name) for name in {cell.cell.origin.name for cell in plan.to_run}}
    groups = [[_seconds(cell, earlier[cell.cell.origin.name]) for cell in g] for g in groups_of(plan.to_run, workers)]
    known = [[seconds for seconds in group if seconds is not None] for group in groups]
    slowest = [max(group) for group in known if group]
    seconds = max(sum(slowest) / workers, max(slowest, default=0.0))
    count = sum(map(len, known))
    return Estimate(seconds, workers, count, len(plan.to_run) - count)


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _earlier(results: Path, name: str) -> dict[str | None, Seconds]:
    """By label the most that any good record of a spec took for each part; under None that of all labels.

    Read as plain JSON: thousands of records would take seconds to be validated, and this is only a guess.
    """
    found: dict[str | None, dict[str, float]] = {}
    for path in (results / RECORDS / name).glob("*.json"):
        label, seconds = _told(path)
        for like in (label, None) if seconds else ():
            most = found.setdefault(like, {})
            most.update({part: max(taken, most.get(part, 0.0)) for part, taken in seconds.items()})
    return dict(found)


def _told(path: Path) -> tuple[str, Seconds]:
    """Label and seconds of a record, without seconds where it is no good one."""
    try:
        record: Json = json.loads(path.read_bytes())
        seconds = {str(part): float(taken) for part, taken in record["cost"]["wall_seconds"].items()}
        return str(record["label"]), seconds if record["status"] == "ok" else {}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "", {}  # an unreadable record tells nothing


def _seconds(cell: PlannedCell, earlier: Mapping[str | None, Seconds]) -> float | None:
    """What the cell will take alone, without training where its SAEs are in the store; None when nothing is known."""
    like = earlier.get(cell.cell.label) or earlier.get(None)
    if like is None:
        return None
    trains = any(step.run and step.stage.kind == "sae" for step in cell.steps)
    return sum(taken for part, taken in like.items() if trains or part != "train")
