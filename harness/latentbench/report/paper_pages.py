"""`docs/papers/`: what the records say of each paper, with tables and figures that are made from the records.

What stands between `<!-- table … -->`, `<!-- matrix … -->` or `<!-- figure … -->` and `<!-- end -->` is a pure function of the records; all around it is
written by hand. `python -m latentbench.report.paper_pages` makes them anew, `--check` fails where one is not up to date.

    <!-- table papers/kronsae/pocket general/explained_variance.centred general/l0 -->
    <!-- matrix papers/steering_vectors/pocket-transfer pocket_problems/reasoning_accuracy.gain -->
    <!-- figure papers/hierarchical_topk/pocket general explained_variance.centred l0 -->

name a suite and the columns `domain/number` or `domain/number@budget`; a suite and one such number of rows that two things
distinguish; or a suite, a domain, and what is drawn against what.
A last word `rows=topk*,!untrained` says which rows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from latentbench.core.errors import InvalidInput, LatentbenchError
from latentbench.leaderboard.api import suite_board
from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.render.text import decimals_of, markdown, number, spread
from latentbench.report.curves import Axes, curves, figure, words
from latentbench.report.row_patterns import EVERY_ROW, RowPatterns
from latentbench.report.two_way import two_way
from latentbench.store.files import write_bytes

ROOT = Path(__file__).parents[3]
_BLOCK = re.compile(r"(<!-- (table|matrix|figure) ([^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_COLUMN = re.compile(r"([^/]+)/([^/@]+)(?:@(\d+))?")


class Pages:
    """The pages of a checkout, and the files that they should be."""

    def __init__(self, root: Path = ROOT) -> None:
        self.folder, self.results = root / "docs/papers", root / "results"
        self._boards: dict[str, Board] = {}

    def files(self) -> dict[Path, bytes]:
        """Every page and figure with its content. Raises InvalidInput for a block that cannot be made, with its page."""
        made: dict[Path, bytes] = {}
        for page in sorted(self.folder.glob("*.md")):
            try:
                made |= self._page(page)
            except InvalidInput as error:
                raise InvalidInput(f"docs/papers/{page.name}: {error}") from None
        return made

    def _page(self, page: Path) -> dict[Path, bytes]:
        text = page.read_text("utf-8")
        figures = {
            _figure_name(asked): self._figure(asked) for _, kind, asked, _ in _BLOCK.findall(text) if kind == "figure"
        }
        filled = _BLOCK.sub(lambda block: f"{block[1]}{self._said(block[2], block[3])}\n{block[4]}", text)
        return {page: filled.encode(), **{self.folder / name: drawn for name, drawn in figures.items()}}

    def _said(self, kind: str, asked: str) -> str:
        if kind == "figure":
            return f"![{_alt(asked)}]({_figure_name(asked)})"
        return self._table(asked) if kind == "table" else self._matrix(asked)

    def _board(self, suite: str) -> Board:
        if suite not in self._boards:
            self._boards[suite] = suite_board(self.results, suite)
        return self._boards[suite]

    def _figure(self, asked: str) -> bytes:
        (suite, domain, y, x), rows = _words(asked, 4)
        board, axes = self._board(suite), Axes(y, domain, x, rows)
        return figure(curves(board, axes), *words(board, axes))

    def _table(self, asked: str) -> str:
        (suite, *names), rows = _words(asked)
        board = self._board(suite)
        parts = []
        for group in board.groups:
            columns = [_column(group, name) for name in names]
            shown = [row for row in group.rows if row.measured and rows.wants(row)]
            if shown and all(columns):
                parts.append(_table(group, [column for column in columns if column], shown))
        if not parts:
            raise InvalidInput(f"`{asked}`: no row has these columns")
        return "\n\n".join(parts)

    def _matrix(self, asked: str) -> str:
        (suite, name), rows = _words(asked, 2)
        parts = []
        for group in self._board(suite).groups:
            if (column := _column(group, name)) is None:
                continue
            shown = [row for row in group.rows if row.measured and rows.wants(row)]
            corner = f"{column.domain}: {group.heading(column)}"
            heading, *lines = two_way(shown, partial(_cell, group, column=column), corner)
            parts.append(_lines([heading, _aligned(len(heading)), *lines]))
        if not parts:
            raise InvalidInput(f"`{asked}`: no row has this column")
        return "\n\n".join(parts)


def _words(asked: str, count: int | None = None) -> tuple[list[str], RowPatterns]:
    *said, last = asked.split()
    chosen = last.startswith("rows=")
    rows = RowPatterns(tuple(last.removeprefix("rows=").split(","))) if chosen else EVERY_ROW
    found = said if chosen else [*said, last]
    if len(found) != (count or len(found)):
        raise InvalidInput(f"`{asked}` has {len(found)} words where {count} are meant")
    return found, rows


def _column(group: RowGroup, name: str) -> Column | None:
    found = _COLUMN.fullmatch(name)
    if found is None:
        raise InvalidInput(f"{name!r} is no column: write domain/number or domain/number@budget")
    wanted = (found[1], found[2], int(found[3]) if found[3] else None)
    alike = [column for column in group.columns if (column.domain, column.metric, column.budget) == wanted]
    return next((column for column in alike if not column.params), next(iter(alike), None))


def _table(group: RowGroup, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Means over seeds, ± half their 95 % interval."""
    heads = [f"{column.domain}: {group.heading(column)}" for column in columns]
    lines = [["row", *heads, "seeds"], _aligned(len(columns) + 2)]
    lines += [
        [row.label or row.spec, *(_cell(group, row, column) for column in columns), str(len(row.measured))]
        for row in rows
    ]
    return _lines(lines)


def _aligned(columns: int) -> list[str]:
    """The line below the heading of a table: names to the left, numbers to the right."""
    return [":--", *["--:"] * (columns - 1)]


def _lines(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    return text if set(text) <= set(":-") else markdown(text)


def _cell(group: RowGroup, row: Row, column: Column) -> str:
    value = row.values.get(column.key)
    if value is None or value.value is None:
        return "–"
    places = decimals_of(group, column)
    half = None if value.low is None or value.high is None else (value.high - value.low) / 2
    shown = number(value.value, column.unit, places)
    return shown if half is None else f"{shown} ±{spread(half, column.unit, places)}"


def _figure_name(asked: str) -> str:
    return f"figures/{re.sub(r'[^a-z0-9.]+', '-', asked.removeprefix('papers/').lower()).strip('-')}.svg"


def _alt(asked: str) -> str:
    (suite, domain, y, x), _ = _words(asked, 4)
    return f"{y} against {x} on {domain}, {suite}"


def main(arguments: Sequence[str]) -> int:
    """`python -m latentbench.report.paper_pages [--check]`: writes the pages, or fails when one is not up to date."""
    pages = Pages()
    try:
        files = pages.files()
    except LatentbenchError as error:
        print(error, file=sys.stderr)
        return 2
    stale = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    unused = [path for path in pages.folder.glob("figures/*") if path not in files]
    if "--check" in arguments:
        for path in (*stale, *unused):
            print(f"{path.relative_to(ROOT)} is not what the records say: make reference", file=sys.stderr)
        return 1 if stale or unused else 0
    for path in stale:
        write_bytes(path, files[path])
        print(f"wrote {path.relative_to(ROOT)}")
    for path in unused:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
