"""The leaderboard and comparisons of a results folder as text, in any format: what the command line calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from latentbench.core.errors import InvalidInput
from latentbench.leaderboard.ahead import work_ahead
from latentbench.leaderboard.board import Board
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.compare import compare
from latentbench.leaderboard.evidence import StatisticsReader
from latentbench.leaderboard.load import LoadedResults, load, on_small_model, record_files, suite_of, within
from latentbench.leaderboard.render import comparison, data, html, latex, markdown, terminal
from latentbench.leaderboard.row_details import curves_of, pages_of
from latentbench.leaderboard.select import select
from latentbench.store.derived import Derived
from latentbench.store.files import write_bytes

BoardFormat = Literal["md", "json", "csv", "latex", "html", "terminal"]
ComparisonFormat = Literal["md", "json", "html", "terminal"]
LEADERBOARD = "LEADERBOARD.md"


def leaderboard(
    results: Path,
    format: BoardFormat = "terminal",
    suite: str | None = None,
    columns: Sequence[str] | None = None,
    width: int = 160,
    store: Path | None = None,
    beside: Path | None = None,
) -> str:
    """The leaderboard of a results folder as text of the given format.

    `suite` keeps the spec of that name or the specs below that folder; `columns` are metric ids, families (`cross_entropy`),
    column keys or `all`, default the short table; `width` is the terminal's. `store` remembers what was worked out before; a page shows
    training curves where it holds them, and links to pages in the folder `beside` it. Raises InvalidInput.
    """
    _known(format, BoardFormat)
    derived = Derived(store) if store else None
    # The other formats show every column, so every column needs its intervals and tests.
    short = not columns and format in ("md", "terminal", "latex")
    files = list(record_files(results))
    if store:
        work_ahead(results, store, len(files), short)
    loaded, source = load(results, derived, files), StatisticsReader(derived)
    _known_suite(loaded, suite)
    if format == "md":
        return markdown.page(_by_suite(loaded, suite, derived, short=short), columns)
    board = board_of(loaded, suite, source, short=short)
    _known_columns(board, columns)
    if format == "html":
        return html.page(board, source, curves=curves_of(board, store), pages=pages_of(board, beside))
    if format == "latex":
        return latex.page(board, columns)
    if format == "json":
        return data.as_json(board, columns)
    return data.as_csv(board, columns) if format == "csv" else terminal.text(board, columns, width)


def suite_board(results: Path, suite: str | None = None) -> Board:
    """The board itself, with intervals in all columns. Raises InvalidInput."""
    loaded = load(results)
    _known_suite(loaded, suite)
    return board_of(loaded, suite)


def leaderboard_parquet(results: Path, suite: str | None = None, columns: Sequence[str] | None = None) -> bytes:
    """The long table of all numbers as Parquet. Raises InvalidInput."""
    board = suite_board(results, suite)
    _known_columns(board, columns)
    return data.as_parquet(board, columns)


def write_leaderboard_md(results: Path, store: Path | None = None) -> Path:
    """Writes LEADERBOARD.md into the results folder, whole or not at all, where it is not what it says already.

    Raises InvalidInput and StoreError.
    """
    path, content = results / LEADERBOARD, leaderboard(results, "md", store=store).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)
    return path


def compare_records(
    results: Path,
    a: str,
    b: str,
    format: ComparisonFormat = "terminal",
    width: int = 160,
    store: Path | None = None,
) -> str:
    """B against A, each a cell id prefix, the path of a record, or `spec-name[label][seed]` (all seeds without one).

    `store` remembers what was worked out before.

    Raises InvalidInput for something unknown or ambiguous, with the nearest names.
    """
    _known(format, ComparisonFormat)
    derived = Derived(store) if store else None
    loaded, source = load(results, derived), StatisticsReader(derived)
    found = compare(select(loaded, a), select(loaded, b), source)
    source.keep()
    if format == "md":
        return comparison.as_markdown(found)
    if format == "html":
        return comparison.as_html(found)
    return comparison.as_json(found) if format == "json" else comparison.as_text(found, width)


def _by_suite(loaded: LoadedResults, suite: str | None, derived: Derived | None, short: bool) -> dict[str, Board]:
    small: dict[str, bool] = {}
    for cell in loaded.loaded:
        name = suite_of(cell.record.spec.name)
        small[name] = small.get(name, True) and on_small_model(cell)
    chosen = [suite] if suite is not None else sorted(small, key=lambda name: (small[name], name))
    alone = LoadedResults(loaded.root, loaded.loaded, ())
    # A reader of its own for each, so that what one could not read is said there.
    boards = {name: board_of(alone, name, StatisticsReader(derived), short=short) for name in chosen}
    if chosen and loaded.refused:
        # Refused files belong to no suite for certain; they are named once, at the end.
        last = boards[chosen[-1]]
        problems = (*last.problems, *map(str, loaded.refused))
        boards[chosen[-1]] = Board(last.groups, last.superseded, problems)
    return boards


def _known(format: str, formats: object) -> None:
    if format not in get_args(formats):
        raise InvalidInput(f"unknown format {format!r}; there are {', '.join(get_args(formats))}")


def _known_suite(loaded: LoadedResults, suite: str | None) -> None:
    names = [cell.record.spec.name for cell in loaded.loaded]
    if suite is not None and not any(within(name, suite) for name in names):
        known = ", ".join(sorted({suite_of(name) for name in names})) or "none"
        raise InvalidInput(f"there are no records of a spec or folder {suite!r}; there are {known}")


def _known_columns(board: Board, columns: Sequence[str] | None) -> None:
    there = [column for group in board.groups for column in group.columns]
    metrics = {column.metric for column in there}
    families = {metric.partition(".")[0] for metric in metrics}
    known = {name for column in there for name in (column.key, column.label)} | metrics | families | {"all"}
    unknown = next((name for name in columns or () if name not in known), None)
    if unknown is not None and there:
        near = sorted(metric for metric in metrics if metric.startswith(unknown.partition(".")[0]))
        raise InvalidInput(f"there is no column {unknown!r}; there are {', '.join(near or sorted(families))}")
