"""How far a batch has come, whoever works on it: what records and leases say, read again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentbench.plan.plan import Plan, PlannedCell
from latentbench.record import Record, Status
from latentbench.results import find_record
from latentbench.store.store import Store


@dataclass(frozen=True)
class State:
    """Where the cells of a batch stand."""

    done: int
    without_numbers: dict[str, Record]
    """By title, cells whose last run ended without numbers."""
    at_work: dict[str, str]
    """By title, cells that some worker makes a stage of now, and which worker; shared stages count for all their cells."""
    left: Plan
    """The cells that have no numbers yet."""

    @property
    def waiting(self) -> int:
        """Cells nobody has touched."""
        return len({item.cell.title for item in self.left.cells} - self.without_numbers.keys() - self.at_work.keys())


@dataclass
class Watch:
    """Looks at a batch; a cell that has been seen with numbers is not looked at again."""

    plan: Plan
    store: Store
    results: Path
    _done: set[str] = field(default_factory=set)

    def look(self) -> State:
        """Where the batch stands now."""
        ended: dict[str, Record] = {}
        for item in self.plan.cells:
            record = None if item.key in self._done else find_record(self.results, item.cell, item.key)
            if record and record.status == "ok":
                self._done.add(item.key)
            elif record:
                ended[item.cell.title] = record
        left = tuple(replace(item, run=True) for item in self.plan.cells if item.key not in self._done)
        return State(len(self.plan.cells) - len(left), ended, self._at_work(left), Plan(left))

    def _at_work(self, left: tuple[PlannedCell, ...]) -> dict[str, str]:
        leases = self.store.leases
        holders = {held.name: str(leases.owner(held) or "a worker") for held in leases.live()}
        found = {}
        for item in left:
            names = (f"{step.stage.kind}-{step.stage.key}" for step in item.steps)
            holder = next((holders[name] for name in names if name in holders), None)
            if holder:
                found[item.cell.title] = holder
        return found


def until_done(watch: Watch, show: Callable[[State], None], pause: Callable[[], None]) -> State:
    """Shows the state again and again until every cell has numbers; what it was at last."""
    state = watch.look()
    show(state)
    while state.left.cells:
        pause()
        state = watch.look()
        show(state)
    return state


def statuses(state: State) -> dict[Status, int]:
    """How many cells there are of each way to end without numbers."""
    found: dict[Status, int] = {}
    for record in state.without_numbers.values():
        found[record.status] = found.get(record.status, 0) + 1
    return found
