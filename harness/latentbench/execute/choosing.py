"""Which cells of a plan are meant: by name, by shard, by how they ended last time, and how many at most."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from latentbench.errors import InvalidInput
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.record import Status
from latentbench.results import find_record


@dataclass(frozen=True)
class Shard:
    """One of `of` parts of all cells, counted from 1; machines that agree on nothing but `of` share the work."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> Shard:
        """`2/8` is the second of eight. Raises InvalidInput."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, of = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= of:
            raise InvalidInput(f"--shard {text!r} is not I/N with 1 ≤ I ≤ N, for instance 2/8")
        return Shard(number, of)

    def has(self, key: str) -> bool:
        """Whether the cell with this key belongs to it, which depends on nothing else."""
        return int(key[:15], 16) % self.of == self.number - 1


@dataclass(frozen=True)
class Choice:
    """What to leave of a plan; everything by default."""

    pattern: str | None = None
    """Part of a cell's title; `*` stands for any text and `?` for any character."""
    shard: Shard | None = None
    last: frozenset[Status] = frozenset()
    """Only cells whose last run ended so; empty for all."""
    max_cells: int | None = None
    """Most cells to run; the first ones of the plan."""

    def of(self, plan: Plan, results: Path) -> Plan:
        """The plan with the cells that are meant. Raises InvalidInput when the pattern matches none."""
        named = [cell for cell in plan.cells if self._named(cell.cell.title)]
        unpinned = {title: why for title, why in plan.unpinned.items() if self._named(title)}
        if self.pattern is not None and plan.cells and not named and not unpinned:
            example = plan.cells[0].cell.title
            raise InvalidInput(f"no cell matches --filter {self.pattern!r}; cells have titles such as {example}")
        kept = [cell for cell in named if self.shard is None or self.shard.has(cell.key)]
        if self.last:
            kept = [cell for cell in kept if cell.run and _last(cell, results) in self.last]
        return replace(plan, cells=tuple(kept), unpinned=unpinned)

    def first(self, plan: Plan) -> Plan:
        """The plan without the cells that would exceed `max_cells`."""
        later = {cell.key for cell in plan.to_run[self.max_cells :]} if self.max_cells is not None else set()
        return replace(plan, cells=tuple(cell for cell in plan.cells if not (cell.run and cell.key in later)))

    def _named(self, title: str) -> bool:
        return self.pattern is None or re.search(_expression(self.pattern), title) is not None


def _expression(pattern: str) -> str:
    """Not fnmatch's: titles are full of brackets, which it would read as sets of characters."""
    return "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)


def _last(cell: PlannedCell, results: Path) -> Status | None:
    record = find_record(results, cell.cell, cell.key)
    return record.status if record else None
