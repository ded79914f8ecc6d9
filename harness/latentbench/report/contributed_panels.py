"""Panels that metrics state themselves (`Metric.panels`), drawn as all others are."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from latentbench.core.hashing import canonical
from latentbench.core.spec_model import Json
from latentbench.metrics.panel import BarData, CurveData, PanelData, PointData, TableData
from latentbench.metrics.recorded import installed
from latentbench.report import figures
from latentbench.report.steered_cell import Panel, SteeredCell
from latentbench.report.tables import Cell, number, table


def contributed(cell: SteeredCell) -> Iterator[Panel]:
    """What the cell's metrics want seen of what their studies left, in the order of the spec; then those nobody asked for."""
    for metric in installed(canonical([*(cell.record.resolved.get("metrics") or ()), *_unasked(cell)])):
        if details := cell.details(metric.label):
            for panel in metric.panels(details):
                body = Markup("").join(drawn(panel, part) for part in panel.parts)
                yield Panel(panel.title, panel.about, body, wide=any(isinstance(p, TableData) for p in panel.parts))


def _unasked(cell: SteeredCell) -> Iterator[Json]:
    """Studies that a row has without a metric of its spec: what a method brings along."""
    asked = {metric.label for metric in installed(cell.record.metrics_section)}
    studies = (name.removeprefix("study/") for name in cell.record.keys if name.startswith("study/"))
    yield from ({"metric": name} for name in studies if name not in asked and "/" not in name)


def drawn(panel: PanelData, part: TableData | CurveData | PointData | BarData) -> Markup:
    """A part of a panel as HTML."""
    if isinstance(part, TableData):
        return table(panel.title, part.head, ([_shown(value) for value in row] for row in part.rows))
    if isinstance(part, CurveData):
        return figures.lines(part.curves, part.x, part.y)
    if isinstance(part, PointData):
        return figures.points(part.places, part.x, part.y)
    return figures.bars(part.values, part.y, part.spans)


def _shown(value: Json) -> Cell:
    # A truth value is an int in Python, and no number to a reader.
    counted = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value) if counted or value is None else str(value)
