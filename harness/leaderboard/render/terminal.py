"""The board as rich tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.leaderboard import board as b
from harness.leaderboard.render.markdown import by_domain, chosen_columns, decimals_of
from harness.leaderboard.render.text import fact, number, plain, spread

LEGEND = "● best   ≈ cannot be told from the best"
INTERVALS = "   ± half the 95 % interval over the documents, problems or latents of the domain"
WIDE = 120
"""Columns of a terminal from which intervals are shown."""
_STYLES = {"best": "bold green", "tied": "green", "behind": "", None: ""}
_MARKS = {"best": "● ", "tied": "≈ ", "behind": "", None: ""}


@dataclass(frozen=True)
class View:
    """Everything a terminal shows of a board; intervals only where the terminal is wide enough."""

    board: b.Board
    columns: Sequence[str] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        intervals = options.max_width >= WIDE
        for group in self.board.groups:
            yield Text(plain(group.title), style="bold")
            for apart in group.differs:
                yield Text(
                    plain(f"apart because {apart.path} is {fact(apart.here)}, not {fact(apart.there)}"), style="dim"
                )
            yield from _tables(group, chosen_columns(group, self.columns), intervals)
            yield ""
        yield from _notes(self.board, intervals)


def text(board: b.Board, columns: Sequence[str] | None = None, width: int = 160) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(View(board, columns))
    return capture.get()


def _notes(board: b.Board, intervals: bool) -> Iterator[RenderableType]:
    if not board.groups:
        yield Text("There are no records yet.")
    yield Text(LEGEND + (INTERVALS if intervals else ""), style="dim")
    if board.superseded:
        yield Text(f"older records not shown: {len(board.superseded)}", style="dim")
    for problem in board.problems:
        yield Text(plain(f"could not be used: {problem}"), style="yellow")


def _tables(group: b.Group, columns: Sequence[b.Column], intervals: bool) -> Iterator[Table]:
    """One table per domain: side by side they would not fit."""
    domains = list(dict.fromkeys(column.domain for column in columns)) or [None]
    for domain in domains:
        yield _table(group, domain, *by_domain(group, columns, domain), intervals)


def _table(
    group: b.Group, domain: str | None, columns: Sequence[b.Column], rows: Sequence[b.Row], intervals: bool
) -> Table:
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    counts = group.counts.get(domain or "")
    heading = f"{domain or 'spec'} ({counts})" if counts else domain or "spec"
    table.add_column(Text(plain(heading)), overflow="fold", min_width=20)
    for column in columns:
        table.add_column(Text(plain(group.heading(column))), justify="right", no_wrap=True)
    table.add_column("notes", overflow="fold")
    places = {column: decimals_of(group, column) for column in columns}
    for row in rows:
        notes = Text(plain("; ".join(badge.text for badge in row.badges)), style="yellow")
        table.add_row(
            Text(plain(f"{row.spec} {row.label}".rstrip())),
            *[_number(group, row, c, places[c], intervals) for c in columns],
            notes,
        )
    return table


def _number(group: b.Group, row: b.Row, column: b.Column, places: int | None, intervals: bool) -> Text:
    value, standing = row.values.get(column.key), group.verdict(row, column).standing
    if value is None or value.value is None:
        return Text("–", style="dim")
    shown = Text(_MARKS[standing] + number(value.value, column.unit, places), style=_STYLES[standing])
    if intervals and column.higher_is_better is not None and value.low is not None and value.high is not None:
        shown.append(f" ±{spread((value.high - value.low) / 2, column.unit, places)}", style="dim")
    return shown
