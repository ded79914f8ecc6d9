"""A run: which cells of a plan are meant, everything from the hub pinned to what it is now, and what is left
afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from latentbench.core.errors import InvalidInput, Unpinnable
from latentbench.core.known_files import kept_in
from latentbench.core.yaml_tree import YamlNode
from latentbench.plan.plan import Plan, PlannedCell, make_plan
from latentbench.records.reading import RecordReader
from latentbench.records.record import Status
from latentbench.records.results import find_record
from latentbench.spec.cells import Cell, SpecFile
from latentbench.spec.experiment import Experiment
from latentbench.spec.project import Project, load_specs
from latentbench.store.derived import Derived
from latentbench.store.store import Store


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
        return int(key[:15], 16) % self.of == self.number - 1  # keys are digests: their parts are about equal in size


@dataclass(frozen=True)
class CellSelection:
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


def prepare(project: Project, given: Iterable[str]) -> Plan:
    """The plan for specs with everything from the hub pinned to what it is now.

    Cells of which that is not known are left out and named in the plan: they cost no others. Raises Unpinnable when
    none is left, SpecError for specs that are wrong.
    """
    unpinned: dict[str, str] = {}
    with kept_in(Derived(project.store)):
        specs = [_pinned(spec, project, unpinned) for spec in load_specs(project, given)]
        plan = make_plan(specs, Store(project.store), project.results, project.roots)
    return replace(plan, unpinned={**unpinned, **plan.unpinned}).with_cells()


def unfinished(plan: Plan, project: Project) -> dict[str, str]:
    """Title and reason of every cell that has no numbers now."""
    found = dict(plan.unpinned)
    cells = [(item.cell, item.key) for item in plan.cells]
    records = RecordReader(Derived(project.store)).find(project.results, cells)
    for item, record in zip(plan.cells, records, strict=True):
        if record is None:
            found[item.cell.title] = "not run"
        elif record.status != "ok":
            error = record.error
            where = f" (log: {project.results.name}/{error.log})" if error and error.log else ""
            reason = f"{error.stage}: {error.type}: {error.message}" if error else ""
            found[item.cell.title] = f"{record.status}: {reason}{where}"
    return found


def _pinned(spec: SpecFile, project: Project, unpinned: dict[str, str]) -> SpecFile:
    """The spec with branches of everything from the hub replaced by the commits they stand for now.

    Without the cells whose commits nobody knows: their titles are added to `unpinned`, with the reason.
    """
    done: dict[int, Experiment | Unpinnable] = {}  # cells that differ only in their seed share an experiment
    kept: list[tuple[Cell, YamlNode]] = []
    for cell, tree in zip(spec.cells, spec.trees, strict=True):
        if id(cell.experiment) not in done:
            done[id(cell.experiment)] = _of_now(cell.experiment, project)
        now = done[id(cell.experiment)]
        if isinstance(now, Unpinnable):
            unpinned[cell.title] = str(now)
        else:
            kept.append((replace(cell, experiment=now), tree))
    return replace(spec, cells=tuple(cell for cell, _ in kept), trees=tuple(tree for _, tree in kept))


def _of_now(experiment: Experiment, project: Project) -> Experiment | Unpinnable:
    try:
        return experiment.pinned(project.roots)
    except Unpinnable as error:
        return error
    except (InvalidInput, ValueError, OSError):
        return experiment  # a name that leads nowhere: the plan says so, with its place in the spec
