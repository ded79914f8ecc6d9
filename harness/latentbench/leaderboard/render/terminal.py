"""The board as rich tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from latentbench.core.text import visible
from latentbench.leaderboard import board as b
from latentbench.leaderboard.render.text import (
    BEYOND_LEGEND,
    by_domain,
    chosen_columns,
    decimals_of,
    fact,
    number,
    spread,
)

LEGEND = "● best   ≈ cannot be told from the best"
INTERVALS = "   ± half the 95 % interval over the documents, problems or latents of the domain"
WIDE = 120
"""Columns of a terminal from which intervals are shown."""
NAMES = 20
"""Characters that the names of rows are given at least."""
_STYLES = {"best": "bold green", "tied": "green", "behind": "", None: ""}
_MARKS = {"best": "● ", "tied": "≈ ", "behind": "", None: ""}


@dataclass(frozen=True)
class View:
    """Everything a terminal shows of a board; intervals only where the terminal is wide enough."""

    board: b.Board
    columns: Sequence[str] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for group in self.board.groups:
            yield Text(visible(group.title), style="bold")
            for apart in group.differs:
                yield Text(
                    visible(f"apart for its {apart.path}: {fact(apart.here)} (above: {fact(apart.there)})"), style="dim"
                )
            yield from _tables(group, chosen_columns(group, self.columns), options.max_width)
            yield ""
        yield from _remarks(self.board, self.columns, options.max_width >= WIDE)


def text(board: b.Board, columns: Sequence[str] | None = None, width: int = 160) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(View(board, columns))
    return capture.get()


def _remarks(board: b.Board, columns: Sequence[str] | None, intervals: bool) -> Iterator[RenderableType]:
    if not board.groups:
        yield Text("There are no records yet.")
    yield Text(LEGEND + (INTERVALS if intervals else ""), style="dim")
    if any(group.beyond(chosen_columns(group, columns)) for group in board.groups):
        yield Text(BEYOND_LEGEND, style="dim")
    if board.superseded:
        yield Text(f"older records not shown: {len(board.superseded)}", style="dim")
    for problem in board.problems:
        yield Text(visible(f"could not be used: {problem}"), style="yellow")


def _tables(group: b.RowGroup, columns: Sequence[b.Column], width: int) -> Iterator[Table]:
    """One table per domain, or several where its columns do not fit beside each other."""
    domains = list(dict.fromkeys(column.domain for column in columns)) or [None]
    for domain in domains:
        own, rows = by_domain(group, columns, domain)
        shown = [_column(group, column, rows, width >= WIDE) for column in own]
        names = [Text(visible(f"{row.spec} {row.label}".rstrip())) for row in rows]
        counts = group.counts.get(domain or "")
        heading = Text(visible(f"{domain or 'spec'} ({counts})" if counts else domain or "spec"))
        # Long names are folded before columns are torn apart.
        room = width - min(max(map(cell_width, (heading, *names))), max(NAMES, width // 3))
        for fitting in _fitting([*shown, *_notes(rows)], room):
            yield _table(heading, names, fitting)


@dataclass(frozen=True)
class Shown:
    """A column as it is shown: its heading, in lines, and a cell per row."""

    heading: Text
    cells: Sequence[Text]
    prose: bool = False
    """Whether the cells are words, which may be folded."""

    @property
    def width(self) -> int:
        """Characters of its widest line, the rule to its left included."""
        widest = max(map(cell_width, (self.heading, *self.cells)))
        return 3 + (min(widest, NAMES) if self.prose else widest)


def cell_width(text: Text) -> int:
    """Characters of the widest line."""
    return max((line.cell_len for line in text.split("\n")), default=0)


def _fitting(columns: Sequence[Shown], room: int) -> list[list[Shown]]:
    """The columns in as few groups as fit into `room` characters, one column at least in each."""
    groups: list[list[Shown]] = [[]]
    for column in columns:
        if groups[-1] and sum(other.width for other in groups[-1]) + column.width > room:
            groups.append([])
        groups[-1].append(column)
    return groups


def _table(heading: Text, names: Sequence[Text], columns: Sequence[Shown]) -> Table:
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    table.add_column(heading, overflow="fold", min_width=NAMES)
    for column in columns:
        table.add_column(column.heading, justify="left" if column.prose else "right", overflow="fold")
    for row, name in enumerate(names):
        table.add_row(name, *(column.cells[row] for column in columns))
    return table


def _column(group: b.RowGroup, column: b.Column, rows: Sequence[b.Row], intervals: bool) -> Shown:
    places = decimals_of(group, column)
    lines = visible(group.heading(column)).replace(" (", "\n(").replace(", ", ",\n")
    return Shown(Text(lines), [_number(group, row, column, places, intervals) for row in rows])


def _notes(rows: Sequence[b.Row]) -> list[Shown]:
    """What is to be said of some rows."""
    notes = [Text(visible("; ".join(badge.text for badge in row.badges)), style="yellow") for row in rows]
    return [Shown(Text("notes"), notes, prose=True)] if any(notes) else []


def _number(group: b.RowGroup, row: b.Row, column: b.Column, places: int | None, intervals: bool) -> Text:
    value, standing = row.values.get(column.key), group.verdict(row, column).standing
    if value is None or value.value is None:
        return Text("–", style="dim")
    shown = Text(_MARKS[standing] + number(value.value, column.unit, places) + value.mark, style=_STYLES[standing])
    if intervals and column.higher_is_better is not None and value.low is not None and value.high is not None:
        shown.append(f" ±{spread((value.high - value.low) / 2, column.unit, places)}", style="dim")
    return shown
