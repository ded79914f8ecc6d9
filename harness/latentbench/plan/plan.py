"""What a run would do, before anything runs: which cells and stages are re-used, which are made, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from latentbench.core.errors import InvalidInput, SpecError, Unpinnable
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.core.stage import Stage
from latentbench.plan.stages import CellStages, StageMaker
from latentbench.records.reading import RecordReader
from latentbench.records.record import Record
from latentbench.records.results import records_of
from latentbench.spec.cells import Cell, SpecFile
from latentbench.spec.checks import check, same_names
from latentbench.store.derived import Derived
from latentbench.store.store import Store


@dataclass(frozen=True)
class PlannedStage:
    """A stage and what will happen to it."""

    stage: Stage
    run: bool
    reason: str


@dataclass(frozen=True)
class PlannedCell:
    """A cell and what will happen to it."""

    cell: Cell
    key: str
    stages: CellStages
    steps: tuple[PlannedStage, ...]
    run: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything a run of some specs would do."""

    cells: tuple[PlannedCell, ...]
    unpinned: Mapping[str, str] = field(default_factory=dict)
    """Title and reason of the cells that are not among them, because nobody here knows what they are made of: what the hub has
    for them now, or what is in a package that is not installed."""

    @property
    def to_run(self) -> tuple[PlannedCell, ...]:
        """The cells that have no good record yet."""
        return tuple(cell for cell in self.cells if cell.run)

    def with_cells(self) -> Plan:
        """Itself. Raises Unpinnable with the reasons when they leave no cell."""
        if self.unpinned and not self.cells:
            raise Unpinnable("\n".join(dict.fromkeys(self.unpinned.values())))
        return self

    def stages(self) -> list[PlannedStage]:
        """All stages of all cells, each once."""
        return list({step.stage.key: step for cell in self.cells for step in cell.steps}.values())


def make_plan(specs: Iterable[SpecFile], store: Store, results: Path, roots: Roots) -> Plan:
    """The plan for some specs.

    Cells of which nobody here knows what they are made of are left out and named in the plan: they cost no others. Raises
    Unpinnable when none is left, SpecError with every problem of all specs.
    """
    specs = list(specs)
    # Before any key: what a key is made of is read from the same files, and would complain one cell at a time.
    problems = [problem for spec in specs for problem in check(spec, roots)] + same_names(specs)
    if problems:
        raise SpecError(problems)
    planner, wanted, unpinned = _Planner(store, results, roots), list[_Wanted](), dict[str, str]()
    for cell in (cell for spec in specs for cell in spec.cells):
        try:
            wanted.append(planner.wanted(cell))
        except Unpinnable as error:
            unpinned[cell.title] = str(error)
    return Plan(tuple(planner.planned(wanted)), unpinned).with_cells()


class _Wanted(NamedTuple):
    """A cell and what its record is known by."""

    cell: Cell
    stages: CellStages
    key: str


class _Planner:
    """Plans cells, and looks once for what several of them share."""

    def __init__(self, store: Store, results: Path, roots: Roots) -> None:
        self.store, self.results, self.maker = store, results, StageMaker(roots)
        self._fates: dict[tuple[str, bool], tuple[bool, str]] = {}

    def wanted(self, cell: Cell) -> _Wanted:
        """A cell with its stages and key."""
        try:
            stages = self.maker.of(cell)
        except Unpinnable:
            raise
        except InvalidInput as error:
            raise type(error)(f"{cell.title}: {error}") from error
        return _Wanted(cell, stages, self.maker.key_of(cell, stages))

    def planned(self, wanted: Sequence[_Wanted]) -> Iterator[PlannedCell]:
        """What will happen to the cells. Their records are read together, and checked anew where their content is new."""
        cells = [(cell, key) for cell, _, key in wanted]
        records = RecordReader(Derived(self.store.root)).find(self.results, cells)
        for (cell, stages, key), record in zip(wanted, records, strict=True):
            good = record is not None and record.status == "ok"
            why = "its record is there" if good else _why(cell, record, self.results)
            yield PlannedCell(cell, key, stages, self._steps(stages, needed=not good), not good, why)

    def _steps(self, stages: CellStages, needed: bool) -> tuple[PlannedStage, ...]:
        return tuple(PlannedStage(stage, *self._fate(stage, needed)) for stage in stages.all())

    def _fate(self, stage: Stage, needed: bool) -> tuple[bool, str]:
        asked = stage.key, needed
        if asked not in self._fates:
            self._fates[asked] = _fate(stage, self.store, needed)
        return self._fates[asked]


def _fate(stage: Stage, store: Store, needed: bool) -> tuple[bool, str]:
    """Whether a stage is made, and why."""
    if not stage.stored:
        return needed, "loaded from its source" if needed else "not needed"
    if store.has(stage.kind, stage.key):
        return False, "in the store"
    if not needed:
        return False, "not needed, the record is there"
    if store.checkpoint(stage.key).is_dir():
        return True, "unfinished, continues from its checkpoint"
    return True, "not in the store"


def _why(cell: Cell, record: Record | None, results: Path) -> str:
    if record and record.status == "damaged":
        return f"its record is damaged: {record.error.message if record.error else ''}"
    if record:
        return f"its last run {record.status}" + (f" ({record.error.type})" if record.error else "")
    earlier = [r for r in records_of(results, cell) if (r.label, r.seed) == (cell.label, cell.seed)]
    if not earlier:
        return "no record yet"
    changes = changed_fields(max(earlier, key=lambda r: r.created).resolved, cell.experiment.plain())
    return (
        "changed since its record: " + "; ".join(changes[:4])
        if changes
        else "definitions or data changed since its record"
    )


def changed_fields(old: Json, new: Json, path: str = "") -> list[str]:
    """Dotted paths whose value differs, as `sae.k 32 → 64`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        nested = (changed_fields(old.get(k), new.get(k), f"{path}.{k}" if path else str(k)) for k in keys)
        return [change for changes in nested for change in changes]
    return [] if old == new else [f"{path} {old!r} → {new!r}"]
