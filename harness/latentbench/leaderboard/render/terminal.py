"""The board as rich tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
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


def _tables(group: b.RowGroup, columns: Sequence[b.Column], width: int) -> Iterator[RenderableType]:
    """One table per domain, or several where its columns do not fit beside each other."""
    domains = list(dict.fromkeys(column.domain for column in columns)) or [None]
    for domain in domains:
        own, rows = by_domain(group, columns, domain)
        shown = [_column(group, column, rows, width >= WIDE) for column in own]
        counts = group.counts.get(domain or "")
        heading = visible(f"{domain or 'spec'} ({counts})" if counts else domain or "spec")
        names = Shown(heading, [visible(f"{row.spec} {row.label}".rstrip()) for row in rows], words=True)
        # Long names are folded before columns are torn apart.
        room = width - min(names.widest, max(NAMES, width // 3))
        for fitting in _fitting([*shown, *_notes(rows)], room):
            yield _table([names, *fitting], width)


@dataclass(frozen=True)
class Shown:
    """A column as it is shown: its heading, in lines, and a cell per row."""

    heading: str
    cells: Sequence[str]
    words: bool = False
    """Whether the cells are words, which may be folded."""

    @cached_property
    def widest(self) -> int:
        """Characters of its widest line."""
        return max(cell_len(line) for cell in (self.heading, *self.cells) for line in cell.split("\n"))

    @property
    def width(self) -> int:
        """Characters that it needs, the rule to its left included."""
        return 3 + (min(self.widest, NAMES) if self.words else self.widest)


def _fitting(columns: Sequence[Shown], room: int) -> list[list[Shown]]:
    """The columns in as few groups as fit into `room` characters, one column at least in each."""
    groups: list[list[Shown]] = [[]]
    for column in columns:
        if groups[-1] and sum(other.width for other in groups[-1]) + column.width > room:
            groups.append([])
        groups[-1].append(column)
    return groups


def _table(columns: Sequence[Shown], width: int) -> RenderableType:
    widths = [max(columns[0].widest, NAMES), *(column.widest for column in columns[1:])]
    whole = not any("\n" in cell for column in columns for cell in column.cells)
    return Lines(columns, widths) if whole and sum(widths) + 3 * len(widths) - 3 <= width else folded(columns)


def folded(columns: Sequence[Shown]) -> Table:
    """A table of rich, which folds what does not fit."""
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if column.words else "right"
        table.add_column(
            Text(column.heading), justify=justify, overflow="fold", min_width=NAMES if place == 0 else None
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


@dataclass(frozen=True)
class Lines:
    """A table in which nothing is folded, as rich draws it: of thousands of rows, rich takes a hundred times as long."""

    columns: Sequence[Shown]
    widths: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment("\n".join(self._lines()) + "\n")

    def _lines(self) -> Iterator[str]:
        heads = [column.heading.split("\n") for column in self.columns]
        high = max(map(len, heads))
        for cells in zip(*([""] * (high - len(head)) + head for head in heads), strict=True):
            yield self._line(cells, " ┃ ")
        yield "━╇━".join("━" * width for width in self.widths)
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            yield self._line(cells, " │ ")

    def _line(self, cells: Sequence[str], rule: str) -> str:
        pads = (" " * (width - cell_len(cell)) for cell, width in zip(cells, self.widths, strict=True))
        sides = zip(cells, pads, self.columns, strict=True)
        return rule.join(cell + pad if column.words else pad + cell for cell, pad, column in sides)


def _column(group: b.RowGroup, column: b.Column, rows: Sequence[b.Row], intervals: bool) -> Shown:
    places = decimals_of(group, column)
    lines = visible(group.heading(column)).replace(" (", "\n(").replace(", ", ",\n")
    return Shown(lines, [_number(group, row, column, places, intervals) for row in rows])


def _notes(rows: Sequence[b.Row]) -> list[Shown]:
    """What is to be said of some rows."""
    notes = [visible("; ".join(badge.text for badge in row.badges)) for row in rows]
    return [Shown("notes", notes, words=True)] if any(notes) else []


def _number(group: b.RowGroup, row: b.Row, column: b.Column, places: int | None, intervals: bool) -> str:
    value, standing = row.values.get(column.key), group.verdict(row, column).standing
    if value is None or value.value is None:
        return "–"
    shown = _MARKS[standing] + number(value.value, column.unit, places) + value.mark
    if intervals and column.higher_is_better is not None and value.low is not None and value.high is not None:
        shown += f" ±{spread((value.high - value.low) / 2, column.unit, places)}"
    return shown
