"""The board as Markdown: the same records give the same bytes, so the file can be committed and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.render.text import (
    BEYOND_LEGEND,
    by_domain,
    chosen_columns,
    decimals_of,
    fact,
    markdown,
    number,
    seconds,
    spread,
)

LEGEND = """\
Numbers are means over seeds; ± is half the width of the 95 % interval over the independent units named with each
domain (documents, problems, latents), in brackets the standard deviation over seeds. **Bold** is the best of its column
and ≈ what cannot be told from it (test over those units, Holm-adjusted over all pairs; overlapping seed ranges are ties
too). Unmarked numbers are behind, not testable, or without a direction. Each domain has a table, best row first.
Rows below different headings were measured differently and are not ranked against each other."""


def page(suites: Mapping[str, Board], columns: Sequence[str] | None = None) -> str:
    """LEADERBOARD.md: one section per suite."""
    parts = ["# Leaderboard", LEGEND]
    for suite, board in suites.items():
        parts += [f"## {markdown(suite)}", *_board(board, columns)]
    if not suites:
        parts.append("There are no records yet.")
    return "\n\n".join(parts) + "\n"


def _board(board: Board, columns: Sequence[str] | None) -> Iterable[str]:
    for group in board.groups:
        yield f"### {markdown(group.title)}"
        if group.differs:
            facts = "\n".join(
                f"- {markdown(f'{d.path}: {fact(d.here)} (there: {fact(d.there)})')}" for d in group.differs
            )
            yield f"Apart from this suite's first table because it differs in:\n\n{facts}"
        yield from _tables(group, chosen_columns(group, columns))
        if group.beyond(chosen_columns(group, columns)):
            yield BEYOND_LEGEND
    if board.superseded:
        yield f"{len(board.superseded)} older record{'s are' if len(board.superseded) > 1 else ' is'} not shown."
    if board.problems:
        yield "Could not be used:\n\n" + "\n".join(f"- {markdown(problem)}" for problem in board.problems)


def _tables(group: RowGroup, columns: Sequence[Column]) -> Iterable[str]:
    """One table per domain, best first there: side by side they would fit on no screen."""
    domains = list(dict.fromkeys(column.domain for column in columns)) or [None]
    for domain in domains:
        if domain is not None:
            yield f"**{_domain(group, domain)}**"
        yield _table(group, *by_domain(group, columns, domain))
    if others := [_domain(group, name) for name in group.domains if name not in domains]:
        yield f"Also measured, in the report: {'; '.join(others)}."


def _domain(group: RowGroup, name: str) -> str:
    return markdown(f"{name} ({group.counts[name]})" if name in group.counts else name)


def _table(group: RowGroup, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    heads = [markdown(group.heading(column)) for column in columns]
    notes = ["notes"] if any(row.badges for row in rows) else []
    lines = [
        _line(["spec", *heads, "seeds", "time", *notes]),
        _line([":--", *["--:"] * (len(columns) + 2), *[":--"] * len(notes)]),
    ]
    places = {column: decimals_of(group, column) for column in columns}
    return "\n".join(lines + [_line([*_cells(group, row, places), *_notes(row, notes)]) for row in rows])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(group: RowGroup, row: Row, places: Mapping[Column, int | None]) -> Iterable[str]:
    yield markdown(row.spec) + (f"<br>{markdown(row.label)}" if row.label else "")
    for column, digits in places.items():
        yield _number(group, row, column, digits)
    yield f"{len(row.measured)}/{len(row.expected)}"
    yield seconds(row.wall_seconds)


def _notes(row: Row, heads: Sequence[str]) -> Iterable[str]:
    return (markdown("; ".join(badge.text for badge in row.badges)) for _ in heads)


def _number(group: RowGroup, row: Row, column: Column, places: int | None) -> str:
    value, standing = row.values.get(column.key), group.verdict(row, column).standing
    if value is None or value.value is None:
        return ""
    shown = number(value.value, column.unit, places) + value.mark
    shown = f"**{shown}**" if standing == "best" else f"≈ {shown}" if standing == "tied" else shown
    if column.higher_is_better is None:
        return shown
    if value.low is not None and value.high is not None:
        shown += f" ± {markdown(spread((value.high - value.low) / 2, column.unit, places))}"
    return shown + (f" ({markdown(spread(value.sd, column.unit, places))})" if value.sd is not None else "")
