"""What the page carries: rows and numbers by column, the short table first, all else in pieces that are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.evidence import StatisticsReader
from latentbench.leaderboard.load import suite_of
from latentbench.leaderboard.pairs import TestedPairs, pairwise
from latentbench.leaderboard.render.columnar import digits, packed, shaped
from latentbench.leaderboard.render.text import DECIMALS, decimals_of
from latentbench.leaderboard.row_details import provenance
from latentbench.metrics.base import Display
from latentbench.metrics.recorded import display_of

PIECE = 20_000
"""Numbers of hidden columns that are read together."""
DETAILS = 500
"""Rows whose details are read together."""
_SMALLEST = 1e-12
"""What lies below is as certain, and takes fewer characters as this."""


def board_data(board: Board) -> Json:
    """What is shown first: groups, rows, and the columns of the short tables."""
    return {"decimals": DECIMALS, "groups": [_group(group) for group in board.groups]}


def pieces(board: Board, source: StatisticsReader) -> Iterator[tuple[str, Json]]:
    """Name and content of all that is read when asked for: other columns, tests of pairs, details of rows."""
    for at, group in enumerate(board.groups):
        for number, columns in enumerate(_hidden(group)):
            yield f"numbers-{at}-{number}", {i: _numbers(group, group.columns[i]) for i in columns}
        position = {column.key: index for index, column in enumerate(group.columns)}
        for key, pairs in pairwise(group.rows, group.shown, source).items():
            yield f"pairs-{at}-{position[key]}", _pairs(pairs)
        for start in range(0, len(group.rows), DETAILS):
            rows = [provenance(row) for row in group.rows[start : start + DETAILS]]
            yield f"details-{at}-{start // DETAILS}", {name: shaped([row[name] for row in rows]) for name in rows[0]}


def _hidden(group: RowGroup) -> list[list[int]]:
    """Positions of the columns outside the short table, in pieces."""
    shown = {column.key for column in group.shown}
    places = [i for i, column in enumerate(group.columns) if column.key not in shown]
    size = _together(group)
    return [places[start : start + size] for start in range(0, len(places), size)]


def _together(group: RowGroup) -> int:
    return max(1, PIECE // max(1, len(group.rows)))


def variant_of(row: Row) -> str:
    """What made the thing that is measured: a steering method, a way to concepts, `flow`, an SAE variant or where an SAE was loaded from."""
    resolved = row.newest.record.resolved
    if isinstance(steering := resolved.get("steering"), dict):
        return str(steering.get("method", "steering"))
    if isinstance(concepts := resolved.get("concepts"), dict):
        return f"concepts by {concepts.get('way', 'some way')}"
    if isinstance(resolved.get("flow"), dict):
        return "flow"
    sae = resolved.get("sae")
    if not isinstance(sae, dict):
        return ""
    found = sae.get("load" if "load" in sae else "variant")
    return str(found.get("adapter", "loaded") if isinstance(found, dict) else found or "")


def _group(group: RowGroup) -> Json:
    units, hidden = _units(group), _hidden(group)
    home = {place: number for number, places in enumerate(hidden) for place in places}
    shown = {column.key for column in group.shown}
    return {
        "title": group.title,
        "domains": group.domains,
        "counts": group.counts,
        "facts": group.facts,
        "differs": [{"path": f.path, "here": f.here, "there": f.there} for f in group.differs],
        "columns": [
            {**_column(group, column, units.get(column.key)), "shown": column.key in shown, "piece": home.get(i)}
            for i, column in enumerate(group.columns)
        ],
        "count": len(group.rows),
        "details": DETAILS,
        "rows": _rows(group.rows),
        "numbers": {i: _numbers(group, column) for i, column in enumerate(group.columns) if column.key in shown},
        "plots": [*_plots(group), *_scale_plots(group)],
    }


def _rows(rows: Sequence[Row]) -> Json:
    by_name: dict[str, list[Json]] = {
        "id": [row.id for row in rows],
        "suite": [suite_of(row.spec) for row in rows],
        "spec": [row.spec for row in rows],
        "label": [row.label for row in rows],
        "variant": [variant_of(row) for row in rows],
        "measured": [bool(row.measured) for row in rows],
        "complete": [row.complete and bool(row.measured) for row in rows],
        "seeds": [f"{len(row.measured)}/{len(row.expected)}" for row in rows],
        "badges": [[[badge.kind, badge.text, badge.detail] for badge in row.badges] for row in rows],
        "cost": [digits(row.wall_seconds, 6) for row in rows],
        "scale": [_scale(row) for row in rows],
    }
    return {name: packed(values) for name, values in by_name.items()}


def _column(group: RowGroup, column: Column, units: str | None) -> dict[str, Json]:
    return {
        "key": column.key,
        "label": group.heading(column),
        "id": f"{column.metric}@{column.version}",
        "domain": column.domain,
        "params": column.params,
        "unit": column.unit,
        "decimals": decimals_of(group, column),
        "units": units,
        "better": column.higher_is_better,
    }


def _numbers(group: RowGroup, column: Column) -> Json:
    """The column's numbers by what they are; what no row has is left out."""
    values = [row.values[column.key] if row.measured else None for row in group.rows]
    verdicts = [group.verdict(row, column) if row.measured else None for row in group.rows]
    by_name: dict[str, list[Json]] = {
        "value": [digits(v.value) if v else None for v in values],
        "low": [digits(v.low) if v else None for v in values],
        "high": [digits(v.high) if v else None for v in values],
        "sd": [digits(v.sd, 5) if v else None for v in values],
        "n": [v.n if v else None for v in values],
        "standing": [verdict.standing if verdict else None for verdict in verdicts],
        "p": [_short(verdict.p) if verdict else None for verdict in verdicts],
        "reason": [
            (v.reason or verdict.reason) if v and verdict else None for v, verdict in zip(values, verdicts, strict=True)
        ],
        "trained": [v.trained_k if v else None for v in values],
    }
    return {name: packed(found) for name, found in by_name.items() if any(value is not None for value in found)}


def _pairs(pairs: TestedPairs) -> Json:
    return {"opponents": pairs.opponents, "p": [_line(line) for line in pairs.p]}


def _line(p_values: Sequence[float | None]) -> Json:
    """Nothing where no test is possible."""
    return [_short(p) for p in p_values] if any(p is not None for p in p_values) else []


def _short(p: float | None) -> float | None:
    return None if p is None else digits(max(p, _SMALLEST), 3)


def _units(group: RowGroup) -> dict[str, str]:
    """Column key to what its numbers are counted in."""
    measured = [row for row in group.rows if row.measured]
    return {key: value.units for row in reversed(measured) for key, value in row.values.items() if value.n is not None}


def _plots(group: RowGroup) -> Iterator[Json]:
    """Trade-offs, each with the domain it stands under, its axes as column positions."""
    trained = {domain: _trained(group, domain) for domain in group.domains}
    for domain, here in trained.items():
        for metric, y in sorted(here.items(), key=itemgetter(1)):
            if (x := _shown(metric).against) in here:
                yield {"domain": domain, "x": here[x], "y": y, "log": True}
            else:
                costs = [there[x] for there in trained.values() if x in there]
                yield from ({"domain": domain, "x": cost, "y": y, "log": False} for cost in costs)


def _scale_plots(group: RowGroup) -> Iterator[Json]:
    """Numbers such as accuracy against the scale at which a vector is added, where rows differ in it."""
    if len({scale for row in group.rows if (scale := _scale(row)) is not None}) > 1:
        for domain in group.domains:
            drawn = (y for metric, y in _trained(group, domain).items() if _shown(metric).by_scale)
            yield from ({"domain": domain, "x": "scale", "y": y, "log": False} for y in drawn)


def _shown(metric: str) -> Display:
    return display_of(metric) or Display(metric)


def _trained(group: RowGroup, domain: str) -> dict[str, int]:
    """Metric to the position of its first column on a domain, as trained."""
    own = [(i, c) for i, c in enumerate(group.columns) if c.domain == domain and c.budget is None]
    return {column.metric: i for i, column in reversed(own)}


def _scale(row: Row) -> float | None:
    steering: Any = row.newest.record.resolved.get("steering")
    scale = steering.get("scale") if isinstance(steering, dict) else None
    return float(scale) if isinstance(scale, int | float) and not isinstance(scale, bool) else None
