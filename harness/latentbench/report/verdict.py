"""What a steered cell comes to: gain, cost and dose with their intervals, held against the controls of its spec.

Every number is one of a record, or the difference of two records over the same problems or documents, computed as comparisons
of the leaderboard are. Which numbers take part their metrics say (`Role`), which rows are controls their methods
(`SteeringMethod.control`).

A gain can be told where its 95 % interval lies on one side of 0. It exceeds that of a control where the paired test says so,
with p-values adjusted by Holm over the controls of a number. Without a control nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from latentbench.leaderboard.board import Column
from latentbench.leaderboard.evidence import MissingStatistics, units_of
from latentbench.leaderboard.inference import difference_of, mismatch
from latentbench.leaderboard.load import LoadedRecord
from latentbench.metrics.base import Role
from latentbench.metrics.recorded import display_of
from latentbench.metrics.value import MetricValue
from latentbench.report.steered_cell import LayerVector, SteeredCell, method_of
from latentbench.statistics.paired import ALPHA, Difference, holm


@dataclass(frozen=True)
class AgainstControl:
    """A number of the cell held against the same number of a control."""

    label: str
    """Of the control's row."""
    kind: str
    """What it is a control by: `random vectors`."""
    size: str
    """How its vectors compare with the cell's, in words; empty where either has none, or they are not in the store."""
    value: MetricValue
    """The control's own number."""
    difference: Difference | None = None
    """The cell's number minus the control's."""
    p: float | None = None
    """Of the difference, adjusted over the controls of the number."""
    reason: str | None = None
    """Why there is no difference or no p-value."""

    @property
    def told(self) -> bool:
        """Whether the two can be told apart."""
        return self.p is not None and self.p <= ALPHA


@dataclass(frozen=True)
class Judged:
    """A number of the verdict."""

    value: MetricValue
    role: Role
    units: str
    """What its `n` counts."""
    levels: tuple[MetricValue, MetricValue] | None
    """Without and with steering, of a gain that is the difference of two numbers."""
    controls: tuple[AgainstControl, ...]

    @property
    def sign(self) -> int:
        """1 for better than without steering, -1 for worse, 0 where neither can be told."""
        return _side(self.value) * self.better

    @property
    def better(self) -> int:
        """1 where larger numbers are better, -1 where smaller ones are."""
        return -1 if self.value.higher_is_better is False else 1

    def against(self, side: int) -> tuple[AgainstControl, ...]:
        """Controls that the cell is better than (1), worse than (-1), or not to be told from (0)."""
        return tuple(control for control in self.controls if self._side_of(control) == side)

    def _side_of(self, control: AgainstControl) -> int | None:
        if control.difference is None:
            return None
        return (1 if control.difference.value > 0 else -1) * self.better if control.told else 0


def judged(cell: SteeredCell) -> list[Judged]:
    """The numbers of the verdict: gains first, then costs, then doses, each in the record's order."""
    found = [(value, role) for value in cell.record.metrics if (role := _role(value))]
    order = ("gain", "cost", "dose")
    return [_judged(cell, value, role) for value, role in sorted(found, key=lambda pair: order.index(pair[1].kind))]


def _role(value: MetricValue) -> Role | None:
    """What a number says in the verdict; nothing where it is about another scale than the cell's, or about no texts."""
    display = display_of(value.id)
    about_cell = "scale" not in value.params and value.domain is not None
    return display.role if display is not None and about_cell else None


def _judged(cell: SteeredCell, value: MetricValue, role: Role) -> Judged:
    levels = [_found(cell.loaded, name, value) for name in role.levels or ()]
    known = [level for level in levels if level is not None and level.value is not None]
    units = units_of(cell.loaded, Column.of(value), value.ci.method if value.ci else None)
    controls = () if role.kind == "dose" else tuple(_controls(cell, value))
    return Judged(value, role, units, (known[0], known[1]) if len(known) == 2 else None, _adjusted(controls))


def _found(row: LoadedRecord, name: str, like: MetricValue) -> MetricValue | None:
    """The number `name` of a row that was measured as `like` was."""
    wanted = (name, like.domain, like.params)
    return next((value for value in row.record.metrics if (value.id, value.domain, value.params) == wanted), None)


def _controls(cell: SteeredCell, value: MetricValue) -> Iterator[AgainstControl]:
    for label, row in controls_of(cell).items():
        if (theirs := _found(row, value.id, value)) is not None:
            other = cell.beside(row.record)
            size = compared_sizes(cell.vectors, other.vectors)
            yield _against(cell, row, value, AgainstControl(label, control_of(row) or "", size, theirs))


def controls_of(cell: SteeredCell) -> dict[str, LoadedRecord]:
    """The other rows of the spec that are controls, by label; none for a cell that is one itself."""
    if control_of(cell.loaded):
        return {}
    return {label: row for label, row in cell.rows.items() if row is not cell.loaded and control_of(row)}


def control_of(row: LoadedRecord) -> str | None:
    """What a row is as a control for others; None where it is none."""
    found = getattr(method_of(row.record), "control", None)
    return str(found) if found else None


def _against(cell: SteeredCell, row: LoadedRecord, value: MetricValue, control: AgainstControl) -> AgainstControl:
    ours, theirs = (side.record.comparability.get(value.domain or "") for side in (cell.loaded, row))
    if ours is None or theirs is None or ours.key != theirs.key or control.value.version != value.version:
        return replace(control, reason="not measured alike")
    if value.value is None or control.value.value is None:
        return replace(control, reason=value.null_reason or control.value.null_reason)
    try:
        a, b = (cell.source.evidence([side], Column.of(value)) for side in (cell.loaded, row))
    except MissingStatistics as error:
        return replace(control, reason=str(error))
    if reason := mismatch(a, b):
        return replace(control, reason=reason)
    found = difference_of(a, b)
    return replace(control, difference=found, p=found.test.p, reason=found.test.reason)


def _adjusted(controls: Sequence[AgainstControl]) -> tuple[AgainstControl, ...]:
    tested = [control for control in controls if control.p is not None]
    adjusted = dict(zip(map(id, tested), holm([control.p or 0.0 for control in tested]), strict=True))
    return tuple(replace(control, p=adjusted.get(id(control))) for control in controls)


def _side(value: MetricValue) -> int:
    """Which side of 0 the interval of a number lies on; 0 where it holds 0, or there is none."""
    if value.ci is None:
        return 0
    return int(value.ci.low > 0) - int(value.ci.high < 0)


def compared_sizes(ours: Sequence[LayerVector], theirs: Sequence[LayerVector]) -> str:
    """How the vectors of a control compare with the cell's: their layers where these differ, else their lengths."""
    if not ours or not theirs:
        return ""
    here, there = ([vector.layer for vector in side] for side in (ours, theirs))
    if here != there:
        return f"at {layers_text(there)} and not {layers_text(here)}"
    ratios = [b.added / a.added for a, b in zip(ours, theirs, strict=True) if a.added > 0]
    if not ratios:
        return ""
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"of {low if low == high else f'{low} to {high}'} times the length at the same layers"


def layers_text(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0 to 5`, `layers 1, 4`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    run = list(range(layers[0], layers[0] + len(layers))) == list(layers)
    return f"layers {layers[0]} to {layers[-1]}" if run else f"layers {', '.join(map(str, layers))}"
