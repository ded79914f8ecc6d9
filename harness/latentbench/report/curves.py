"""One number against another over the rows of a suite, as a figure for a paper: SVG, PNG or PDF, drawn by matplotlib.

A row is a point, its mean over seeds with the 95 % interval. Rows of one variant are joined in the order of x. A row that was
also measured at other budgets than it was trained with (an SAE cut to fewer latents) is a curve of its own, dashed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from latentbench.core.errors import InvalidInput
from latentbench.leaderboard.board import Board, Column, Row, RowGroup, Value
from latentbench.leaderboard.render.page_data import variant_of
from latentbench.report.row_patterns import EVERY_ROW, RowPatterns

FORMATS = ("svg", "png", "pdf")
LOG_FROM = 8.0
"""How many times the least x the largest must be for a logarithmic axis."""
_COLOURS = ("#0b6b5d", "#c2701d", "#5b6ee1", "#a12a7a", "#7a8b1f", "#444444", "#b02a2a", "#2a86b0")
_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Point:
    """A row, at one budget."""

    row: str
    x: float
    y: float
    low: float | None
    high: float | None
    """95 % interval of y."""


@dataclass(frozen=True)
class Curve:
    """Points that belong together, in the order of x."""

    name: str
    points: tuple[Point, ...]
    cut: bool
    """Whether it is one row at several budgets."""


@dataclass(frozen=True)
class Axes:
    """What is drawn against what."""

    y: str
    """Id of a number, e.g. `explained_variance.centred`."""
    domain: str
    x: str = "l0"
    rows: RowPatterns = EVERY_ROW
    """Which rows are drawn."""


def curves(board: Board, axes: Axes) -> list[Curve]:
    """The curves of a board's rows. Raises InvalidInput where no row has both numbers, with the numbers there are."""
    found = {group.title: made for group in board.groups if (made := _of_group(group, axes))}
    if not found:
        raise InvalidInput(_nothing(board, axes))
    if len(found) == 1:
        return next(iter(found.values()))
    # Rows of two groups were measured differently: nothing joins them.
    return [replace(curve, name=f"{curve.name}, {title}") for title, made in found.items() for curve in made]


def _of_group(group: RowGroup, axes: Axes) -> list[Curve]:
    by_variant: dict[str, list[Point]] = {}
    cut: list[Curve] = []
    for row in group.rows:
        points = _points(group, row, axes) if row.measured and axes.rows.wants(row) else []
        by_variant.setdefault(variant_of(row) or row.spec, []).extend(p for budget, p in points if budget is None)
        if len(points) > 1:
            cut.append(Curve(_name(row), _ordered(p for _, p in points), True))
    alone = {curve.name for curve in cut}
    joined = [
        Curve(variant, _ordered(points), False)
        for variant, points in by_variant.items()
        if points and not (len(points) == 1 and points[0].row in alone)  # it is on a curve of its own already
    ]
    return [*joined, *cut]


def _name(row: Row) -> str:
    return row.label or row.spec


def _points(group: RowGroup, row: Row, axes: Axes) -> list[tuple[int | None, Point]]:
    across = {column.budget: column for column in _columns(group, axes.x, axes.domain)}
    found = []
    for column in _columns(group, axes.y, axes.domain):
        value = row.values.get(column.key, Value(None))
        x = _x(row, across.get(column.budget), column.budget if axes.x == "l0" else None)
        if value.value is not None and x is not None:
            point = Point(_name(row), x, value.value, value.low, value.high)
            found.append((column.budget, point))
    return found


def _columns(group: RowGroup, number: str, domain: str) -> list[Column]:
    return [
        column for column in group.columns if (column.metric, column.domain) == (number, domain) and not column.params
    ]


def _x(row: Row, column: Column | None, budget: int | None) -> float | None:
    measured = row.values[column.key].value if column is not None and column.key in row.values else None
    return measured if measured is not None else None if budget is None else float(budget)


def _ordered(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda point: (point.x, point.row)))


def _nothing(board: Board, axes: Axes) -> str:
    columns = [column for group in board.groups for column in group.columns if not column.params]
    if axes.domain not in {column.domain for column in columns}:
        return f"no row has numbers on {axes.domain!r}; there are: {', '.join(sorted({c.domain for c in columns if c.domain}))}"
    there = {column.metric for column in columns if column.domain == axes.domain}
    lacking = [name for name in (axes.x, axes.y) if name not in there]
    if lacking:
        return f"no row has {lacking[0]!r} on {axes.domain}; there are: {', '.join(sorted(there))}"
    return f"no row that {axes.rows} names has both {axes.y!r} and {axes.x!r} on {axes.domain}"


def words(board: Board, axes: Axes) -> tuple[str, str]:
    """What stands at the axes of x and of y: the numbers as tables head them, with their units."""
    columns = [column for group in board.groups for column in _columns(group, axes.x, axes.domain)]
    columns += [column for group in board.groups for column in _columns(group, axes.y, axes.domain)]
    said = {column.metric: replace(column, budget=None) for column in columns}
    x, y = (f"{said[name].label} ({said[name].unit})" if name in said else name for name in (axes.x, axes.y))
    return x, f"{y} on {axes.domain}"


def figure(found: Sequence[Curve], x: str, y: str, format: str = "svg") -> bytes:
    """The file that shows curves under the words `x` and `y`; the same curves give the same bytes. Raises InvalidInput."""
    if format not in FORMATS:
        raise InvalidInput(f"figures are written as {', '.join(FORMATS)}, not {format!r}")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and nothing in the file depends on when it was made.
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "latentbench", "font.size": 9, "font.family": "sans-serif"}
    ):
        drawn = Figure(figsize=(6.4, 3.9), layout="constrained")
        axes = drawn.add_subplot()
        for number, curve in enumerate(found):
            _draw(axes, curve, _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)])
        xs = [point.x for curve in found for point in curve.points]
        if min(xs) > 0 and max(xs) >= LOG_FROM * min(xs):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        drawn.legend(loc="outside right upper", frameon=False)
        file = io.BytesIO()
        drawn.savefig(file, format=format, dpi=160, metadata=None if format == "png" else {_DATE[format]: None})
    return file.getvalue()


_DATE = {"svg": "Date", "pdf": "CreationDate"}


def _draw(axes: Any, curve: Curve, colour: str, marker: str) -> None:
    xs, ys = [point.x for point in curve.points], [point.y for point in curve.points]
    below = [point.y - point.low if point.low is not None else 0.0 for point in curve.points]
    above = [point.high - point.y if point.high is not None else 0.0 for point in curve.points]
    axes.errorbar(
        *(xs, ys),
        yerr=[below, above],
        label=f"{curve.name}, cut" if curve.cut else curve.name,
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.3,
        linestyle="--" if curve.cut else "-",
        capsize=2,
        elinewidth=0.8,
    )
