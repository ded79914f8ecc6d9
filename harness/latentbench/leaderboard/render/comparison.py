"""A comparison as Markdown, JSON, rich tables, and one offline HTML page in the look of the report."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from latentbench.core.spec_model import Json
from latentbench.core.text import visible
from latentbench.leaderboard.board import Fact
from latentbench.leaderboard.compare import Comparison, DomainMatch, MetricChange, Mover
from latentbench.leaderboard.render.html import offline_page
from latentbench.leaderboard.render.text import decimals, fact, markdown, number, p_value
from latentbench.leaderboard.select import Side

HEADS = ("number", "A", "B", "B − A", "95 % interval", "p (Holm)", "better", "over seeds")
_ALIGNED = (":--", "--:", "--:", "--:", "--:", "--:", ":--", ":--")
LEGEND = """\
The difference is B − A on the same documents (problems): interval by bootstrap, p by the paired exchange test over
them. Latents of different SAEs are not the same things: they are resampled apart and tested by Welch's test. p is
Holm-adjusted over all numbers with a direction. Over the seeds that both have stands a sign-flip test of their own;
a side whose range over seeds overlaps the other's is not called better."""


def as_markdown(found: Comparison) -> str:
    """A page of Markdown; the same records give the same bytes."""
    return "\n\n".join(_markdown_parts(found)) + "\n"


def as_json(found: Comparison) -> str:
    """Everything as JSON."""
    data = {
        "schema": 1,
        "a": _side(found.a.name, found), "b": _side(found.b.name, found, second=True),
        "fields": [{"path": f.path, "a": f.there, "b": f.here} for f in found.fields],
        "domains": [_domain(match) for match in found.domains],
        "metrics": [_change(change) for change in found.changes],
        "movers": {key: [vars(mover) for mover in movers] for key, movers in found.movers.items()},
        "problems": found.problems,
    }  # fmt: skip
    return json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def renderable(found: Comparison) -> RenderableType:
    """What a terminal shows."""
    return Group(*_terminal_parts(found))


def as_text(found: Comparison, width: int = 160) -> str:
    """The terminal's view as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable(found))
    return capture.get()


def verdict_on(match: DomainMatch) -> str:
    """One sentence on whether a domain can be compared."""
    if match.comparable:
        return f"{match.domain}: comparable"
    why = (
        match.reason
        or ", ".join(f"{f.path.lstrip('.')} {fact(f.there)} → {fact(f.here)}" for f in match.differs)
        or "keys differ"
    )
    return f"{match.domain}: not comparable ({why})"


def _cells(change: MetricChange) -> tuple[str, ...]:
    unit, domain = change.column.unit, change.column.domain
    low, high, places = change.low, change.high, _decimals_of(change)
    return (
        change.column.label + (f", {domain}" if domain else ""),
        number(change.a.value, unit, places),
        number(change.b.value, unit, places),
        signed(change.difference, unit, places),
        "" if low is None or high is None else f"{signed(low, unit, places)} … {signed(high, unit, places)}",
        change.reason or p_value(change.p_holm),
        change.better or ("tie" if change.p_holm is not None else ""),
        over_seeds(change),
    )


def over_seeds(change: MetricChange) -> str:
    """What the seeds say of a number."""
    if change.seeds is None:
        return ""
    overlap = "ranges overlap; " if change.p_holm is not None and change.a.overlaps(change.b) else ""
    return overlap + (change.seeds.reason or p_value(change.seeds.p))


def said_by_all(changes: Sequence[MetricChange]) -> str | None:
    """What the seeds say of every number that they say anything of, where that is the same."""
    said = {text for change in changes if (text := over_seeds(change))}
    return next(iter(said), "") if len(said) < 2 else None


def _decimals_of(change: MetricChange) -> int | None:
    """Digits after the point of both numbers and of their difference."""
    halves = () if change.low is None or change.high is None else ((change.high - change.low) / 2,)
    return decimals(change.column.unit, halves)


def signed(value: float | None, unit: str, places: int | None = None) -> str:
    """A difference with its sign; nothing for a missing one."""
    return "" if value is None else ("+" if value > 0 else "") + number(value, unit, places)


def field_values(found: Fact) -> tuple[str, str, str]:
    """A field that differs, with A's value and B's."""
    return visible(found.path), visible(fact(found.there)), visible(fact(found.here))


def _field(found: Fact) -> str:
    return f"{found.path}: {fact(found.there)} → {fact(found.here)}"


def _markdown_parts(found: Comparison) -> Iterator[str]:
    yield f"# {markdown(found.a.name)} against {markdown(found.b.name)}"
    yield f"A is {markdown(found.a.name)} (seeds {_seeds(found.a.seeds)}); B is {markdown(found.b.name)} (seeds {_seeds(found.b.seeds)})."
    fields = [f"- {markdown(_field(field))}" for field in found.fields] or ["- nothing"]
    yield "## What differs\n\n" + "\n".join(fields)
    matches = [f"- {markdown(verdict_on(match))}" for match in found.domains] or ["- neither side has numbers"]
    yield "## Comparable?\n\n" + "\n".join(matches)
    said, shown = _seeds_column(found)
    lines = [f"| {' | '.join(markdown(cell) for cell in _cells(change)[:shown])} |" for change in found.changes]
    head = f"| {' | '.join(HEADS[:shown])} |\n| {' | '.join(_ALIGNED[:shown])} |"
    yield f"## Numbers\n\n{LEGEND}{said}\n\n{head}\n" + "\n".join(lines)
    for change in found.changes:
        if movers := found.movers.get(change.column.key):
            unit = change.column.unit
            listed = [f"| {m.document} | {number(m.a, unit)} | {number(m.b, unit)} | {m.share:+.2e} |" for m in movers]
            units = change.a.units
            title = f"## {units.capitalize()} that moved {markdown(_cells(change)[0])} most"
            yield (
                f"{title}\n\n| {units.removesuffix('s')} | A | B | share of B − A |\n| --: | --: | --: | --: |\n"
                + "\n".join(listed)
            )
    if found.problems:
        yield "## Could not be used\n\n" + "\n".join(f"- {markdown(problem)}" for problem in found.problems)


def _seeds_column(found: Comparison) -> tuple[str, int]:
    """What all numbers have to say of seeds as a sentence, and how many columns are then left to show."""
    said = said_by_all(found.changes)
    return (f"\nOver seeds: {said}." if said else "", len(HEADS) - (said is not None))


def _terminal_parts(found: Comparison) -> Iterator[RenderableType]:
    for name, side in (("A", found.a), ("B", found.b)):
        yield Text(visible(f"{name}  {side.name}  seeds {_seeds(side.seeds)}"), style="bold")
    yield Text("differs in" if found.fields else "nothing differs in the experiments", style="bold")
    for field in found.fields:
        yield Text(visible(f"  {_field(field)}"))
    for match in found.domains:
        yield Text(visible(verdict_on(match)), style="" if match.comparable else "yellow")
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    said, shown = _seeds_column(found)
    for position, head in enumerate(HEADS[:shown]):
        table.add_column(head, justify="right" if 0 < position < 6 else "left")
    for change in found.changes:
        style = "green" if change.better else ""
        table.add_row(*(Text(visible(cell), style=style) for cell in _cells(change)[:shown]))
    yield table
    if said:
        yield Text(said.strip(), style="dim")
    units = {change.column.key: change.a.units for change in found.changes}
    for key, movers in found.movers.items():
        moved = ", ".join(f"{m.document} ({m.share:+.1e})" for m in movers)
        yield Text(visible(f"{units[key]} that moved {key} most: {moved}"), style="dim")
    for problem in found.problems:
        yield Text(visible(f"could not be used: {problem}"), style="yellow")


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def _side(name: str, found: Comparison, second: bool = False) -> Json:
    cells = (found.b if second else found.a).cells
    return {"name": name, "cells": [{"cell": c.record.cell, "seed": c.record.seed, "record": c.path} for c in cells]}


def _domain(match: DomainMatch) -> Json:
    differs = [{"path": f.path.lstrip("."), "a": f.there, "b": f.here} for f in match.differs]
    return {"domain": match.domain, "comparable": match.comparable, "differs": differs, "reason": match.reason}


def _change(change: MetricChange) -> Json:
    column = change.column
    return {
        "domain": column.domain, "metric": column.metric, "version": column.version, "budget": column.budget,
        "unit": column.unit, "higher_is_better": column.higher_is_better, "a": change.a.value, "b": change.b.value,
        "difference": change.difference, "low": change.low, "high": change.high, "p": change.p,
        "p_holm": change.p_holm, "better": change.better, "reason": change.reason,
        "units": change.a.units, "n_a": change.a.n, "n_b": change.b.n,
        "seed_p": change.seeds.p if change.seeds else None,
        "seed_reason": change.seeds.reason if change.seeds else None,
    }  # fmt: skip


WIDTH = 130.0
"""Pixels that the drawing of an interval is wide."""


@dataclass(frozen=True)
class Bar:
    """An interval around a difference as positions in pixels; zero is in the middle."""

    low: float
    high: float
    value: float
    zero: float = WIDTH / 2


def as_html(found: Comparison) -> str:
    """The page; the same records give the same bytes."""
    spans = _spans(found.changes)
    by_domain: dict[str, list[Json]] = {}
    for change in found.changes:
        by_domain.setdefault(change.column.domain or "", []).append(_number(change, spans.get(change.column.label)))
    return offline_page(
        "comparison.html",
        ("dom.js", "comparison.js"),
        sides=[_side_data("A", found.a), _side_data("B", found.b)],
        verdicts=list(_verdicts(found)),
        fields=[field_values(fact) for fact in found.fields],
        matches=[{"text": visible(verdict_on(match)), "comparable": match.comparable} for match in found.domains],
        domains=by_domain,
        grid=_grid(found.changes),
        movers=list(_movers(found)),
        problems=[visible(problem) for problem in found.problems],
        legend=LEGEND.replace("`", ""),
        seeds=said_by_all(found.changes),
        width=WIDTH,
    )


def _side_data(letter: str, side: Side) -> Json:
    records = [{"seed": cell.record.seed, "path": cell.path} for cell in side.cells]
    return {"letter": letter, "name": visible(side.name), "records": records}


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
    unit, places = change.column.unit, _decimals_of(change)
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
    return {"text": signed(change.difference, change.column.unit, _decimals_of(change)), "better": change.better}


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
