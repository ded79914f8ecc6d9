"""A comparison as one offline HTML page, in the look of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentbench.leaderboard.compare import Comparison, MetricChange, Mover, Side
from latentbench.leaderboard.render.comparison import (
    LEGEND,
    decimals_of,
    field_values,
    over_seeds,
    said_by_all,
    signed,
    verdict_on,
)
from latentbench.leaderboard.render.offline import offline_page
from latentbench.leaderboard.render.text import number, p_value, plain
from latentbench.section import Json

WIDTH = 130.0
"""Of the drawing of an interval, in pixels."""


@dataclass(frozen=True)
class Bar:
    """An interval around a difference as positions in pixels; zero is in the middle."""

    low: float
    high: float
    value: float
    zero: float = WIDTH / 2


def page(found: Comparison) -> str:
    """The page; the same records give the same bytes."""
    spans = _spans(found.changes)
    by_domain: dict[str, list[Json]] = {}
    for change in found.changes:
        by_domain.setdefault(change.column.domain or "", []).append(_number(change, spans.get(change.column.label)))
    return offline_page(
        "comparison.html",
        ("dom.js", "comparison.js"),
        sides=[_side("A", found.a), _side("B", found.b)],
        verdicts=list(_verdicts(found)),
        fields=[field_values(fact) for fact in found.fields],
        matches=[{"text": plain(verdict_on(match)), "comparable": match.comparable} for match in found.domains],
        domains=by_domain,
        grid=_grid(found.changes),
        movers=list(_movers(found)),
        problems=[plain(problem) for problem in found.problems],
        legend=LEGEND.replace("`", ""),
        seeds=said_by_all(found.changes),
        width=WIDTH,
    )


def _side(letter: str, side: Side) -> Json:
    records = [{"seed": cell.record.seed, "path": cell.path} for cell in side.cells]
    return {"letter": letter, "name": plain(side.name), "records": records}


def _verdicts(found: Comparison) -> Iterator[Json]:
    """Per domain how many numbers each side wins, among those that can be judged."""
    for match in (match for match in found.domains if match.comparable):
        judged = [c for c in found.changes if c.column.domain == match.domain and c.p_holm is not None]
        wins = {side: [c for c in judged if c.better == side] for side in "AB"}
        most = "B" if len(wins["B"]) > len(wins["A"]) else "A" if wins["A"] else None
        ties = len(judged) - len(wins["A"]) - len(wins["B"])
        yield {
            "domain": match.domain,
            "better": most,
            "wins": {side: [c.column.label for c in won] for side, won in wins.items()},
            "ties": ties,
            "judged": len(judged),
        }


def _spans(changes: Sequence[MetricChange]) -> dict[str, float]:
    """Label of a number to the largest bound of its difference, so that its intervals on all domains share a scale."""
    spans: dict[str, float] = {}
    for change in changes:
        bounds = [abs(b) for b in (change.low, change.high, change.difference) if b is not None]
        if change.low is not None:
            spans[change.column.label] = max([spans.get(change.column.label, 0.0), *bounds])
    return spans


def _number(change: MetricChange, span: float | None) -> Json:
    unit, places = change.column.unit, decimals_of(change)
    return {
        "label": change.column.label,
        "id": f"{change.column.metric}@{change.column.version}",
        "params": change.column.params,
        "a": number(change.a.value, unit, places),
        "b": number(change.b.value, unit, places),
        "difference": signed(change.difference, unit, places),
        "interval": ""
        if change.low is None
        else f"{signed(change.low, unit, places)} … {signed(change.high, unit, places)}",
        "bar": _bar(change, span),
        "p": p_value(change.p_holm),
        "better": change.better,
        "tie": change.p_holm is not None and change.better is None,
        "reason": change.reason,
        "seeds": over_seeds(change),
        "over": "" if change.a.n is None or change.p is None else f"{change.a.n:,} {change.a.units}",
    }


def _bar(change: MetricChange, span: float | None) -> Bar | None:
    if change.low is None or change.high is None or change.difference is None or not span:
        return None
    scale = (WIDTH / 2 - 4) / span
    low, high, value = (round(WIDTH / 2 + x * scale, 1) for x in (change.low, change.high, change.difference))
    return Bar(low, high, value)


def _grid(changes: Sequence[MetricChange]) -> Json:
    """Differences of the numbers that several domains have, domains side by side."""
    domains = list(dict.fromkeys(c.column.domain for c in changes if c.column.domain is not None))
    rows: dict[str, dict[str, MetricChange]] = {}
    for change in changes:
        if change.column.domain is not None and change.difference is not None and change.p_holm is not None:
            rows.setdefault(change.column.label, {})[change.column.domain] = change
    several = {label: row for label, row in rows.items() if len(row) > 1}
    cells = [{"label": label, "cells": [_cell(row.get(d)) for d in domains]} for label, row in several.items()]
    return {"domains": domains, "rows": cells}


def _cell(change: MetricChange | None) -> Json:
    if change is None:
        return {"text": "", "better": None}
    return {"text": signed(change.difference, change.column.unit, decimals_of(change)), "better": change.better}


def _movers(found: Comparison) -> Iterator[Json]:
    for change in found.changes:
        if moved := found.movers.get(change.column.key):
            unit, largest = change.column.unit, max(abs(mover.share) for mover in moved)
            yield {
                "title": f"{change.column.label}, {change.column.domain}",
                "unit": change.a.units.removesuffix("s"),
                "rows": [_mover(mover, unit, largest) for mover in moved],
            }


def _mover(mover: Mover, unit: str, largest: float) -> Json:
    return {
        "document": mover.document,
        "a": number(mover.a, unit),
        "b": number(mover.b, unit),
        "share": f"{mover.share:+.2e}",
        "width": round(abs(mover.share) / largest * WIDTH / 2, 1),
        "up": mover.share > 0,
    }
