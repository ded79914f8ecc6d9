"""The board as Markdown: the same records give the same bytes, so the file can be committed and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.leaderboard.board import Board, Column, Group, Row
from harness.leaderboard.render.text import markdown, number, seconds, spread

LEGEND = """\
Numbers are means over seeds; ± is half the width of the 95 % interval over the independent units named with each
domain (documents, problems, latents), (sd) the spread over seeds. **Bold** is the best of its column and ≈ what cannot
be told from it (test over those units, Holm-adjusted over all pairs; overlapping seed ranges are ties too). Unmarked
numbers are behind, not testable, or without a direction.
Rows of different tables were measured differently and are not ranked against each other."""


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
        if group.domains:
            yield f"Domains: {'; '.join(_domain(group, name) for name in group.domains)}."
        if group.differs:
            facts = "\n".join(f"- {markdown(f'{d.path}: {d.here} (there: {d.there})')}" for d in group.differs)
            yield f"Apart from this suite's first table because it differs in:\n\n{facts}"
        yield _table(group, chosen_columns(group, columns))
    if board.superseded:
        yield f"{len(board.superseded)} older record{'s are' if len(board.superseded) > 1 else ' is'} not shown."
    if board.problems:
        yield "Could not be used:\n\n" + "\n".join(f"- {markdown(problem)}" for problem in board.problems)


def _domain(group: Group, name: str) -> str:
    return markdown(f"{name} ({group.counts[name]})" if name in group.counts else name)


def chosen_columns(group: Group, wanted: Sequence[str] | None) -> tuple[Column, ...]:
    """The short table's columns, or those whose key, metric id or label is wanted (`all` for every column)."""
    if not wanted:
        return group.shown
    if "all" in wanted:
        return group.columns
    return tuple(c for c in group.columns if {c.key, c.metric, c.metric.partition(".")[0], c.label} & set(wanted))


def _table(group: Group, columns: Sequence[Column]) -> str:
    domains = len({column.domain for column in columns}) > 1
    heads = [markdown(group.heading(c)) + (f"<br>{markdown(c.domain or '')}" if domains else "") for c in columns]
    lines = [_line(["spec", *heads, "seeds", "time", "notes"]), _line([":--", *["--:"] * (len(columns) + 2), ":--"])]
    return "\n".join(lines + [_line(_cells(group, row, columns)) for row in group.rows])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(group: Group, row: Row, columns: Sequence[Column]) -> Iterable[str]:
    yield markdown(row.spec) + (f" · {markdown(row.label)}" if row.label else "")
    for column in columns:
        yield _number(group, row, column)
    yield f"{len(row.measured)}/{len(row.expected)}"
    yield seconds(row.wall_seconds)
    yield markdown("; ".join(badge.text for badge in row.badges))


def _number(group: Group, row: Row, column: Column) -> str:
    value, standing = row.values.get(column.key), group.verdict(row, column).standing
    if value is None or value.value is None:
        return ""
    shown = number(value.value, column.unit)
    shown = f"**{shown}**" if standing == "best" else f"≈ {shown}" if standing == "tied" else shown
    if column.higher_is_better is None:
        return shown
    if value.low is not None and value.high is not None:
        shown += f" ± {number((value.high - value.low) / 2, column.unit)}"
    return shown + (f" ({markdown(spread(value.sd, column.unit))})" if value.sd is not None else "")
