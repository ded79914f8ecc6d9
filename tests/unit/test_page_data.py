"""What the page carries: columns that say once what rows share, within bounded bytes per row, and tests of pairs that do not
grow with the square of the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentbench.leaderboard import inference
from latentbench.leaderboard import pairs as pairs_of
from latentbench.leaderboard.board import Column, Row, RowGroup
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.evidence import MissingStatistics, StatisticsReader
from latentbench.leaderboard.load import load
from latentbench.leaderboard.pairs import pairwise
from latentbench.leaderboard.render import html
from latentbench.leaderboard.render.columnar import digits, packed, shaped
from latentbench.statistics.paired import exchange_test, exchange_tests
from latentbench.statistics.unpaired import _rarest
from tests.e2e.test_report_large import many
from tests.unit.leaderboard_factory import Planted, write

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def unpacked(column: Any, count: int) -> list[Any]:
    """As `unpack` of data.js."""
    if isinstance(column, list):
        return column
    if "of" in column:
        return [column["of"][place] for place in column["at"]]
    found = [column.get("all")] * count
    for row, value in zip(column.get("in", ()), column.get("as", ()), strict=True):
        found[row] = value
    return found


def grown(tables: Any, count: int) -> list[Any]:
    """As `grown` of data.js, for all rows."""
    kinds = unpacked(tables["of"], count)
    rows: list[Any] = []
    for at, kind in enumerate(kinds):
        form, place = tables["forms"][kind], kinds[:at].count(kind)
        leaves = [unpacked(column, kinds.count(kind))[place] for column in form["leaves"]]
        rows.append(filled(form["form"], leaves))
    return rows


def filled(form: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(form, int):
        return leaves[form]
    if isinstance(form, list):
        return [filled(part, leaves) for part in form]
    return {name: filled(part, leaves) for name, part in form.items()}


@given(st.lists(LEAVES | st.lists(st.text(), max_size=2), max_size=12))
@example([None, None, None, 0, 0.0, ""])
@example([True, "true", True, "true"])
def test_a_column_reads_back_as_it_was(values: list[Any]) -> None:
    assert str(unpacked(json.loads(json.dumps(packed(values))), len(values))) == str(values)


@given(st.lists(TREES, min_size=1, max_size=8))
def test_nested_data_of_many_rows_reads_back_as_it_was(trees: list[Any]) -> None:
    assert str(grown(json.loads(json.dumps(shaped(trees))), len(trees))) == str(trees)


def test_what_rows_share_is_said_once() -> None:
    rows = [{"spec": "a" * 200, "seed": i, "path": f"{i}.json", "device": "cpu"} for i in range(1000)]
    assert len(json.dumps(shaped(rows))) < 25 * len(rows)
    assert len(json.dumps(packed(["quickstart", "papers"] * 500))) < 4 * 1000
    assert packed([None] * 999 + [0.5]) == {"in": [999], "as": [0.5]}


def test_digits_keep_whole_numbers_and_what_json_can_hold() -> None:
    assert [digits(x) for x in (1 / 3, 123456789012, 12345.678912, None, math.nan, math.inf)] == [
        0.33333333, 123456789012, 12345.679, None, None, None,
    ]  # fmt: skip


def test_the_page_grows_by_a_bounded_number_of_bytes_a_row() -> None:
    """16 numbers a row and its details; with every row written out it was 12,000 bytes."""
    sizes = [len(html.page(board_of(many(rows)))) for rows in (200, 600)]
    assert 200 < (sizes[1] - sizes[0]) / 400 < 900


def test_curves_and_links_stay_with_their_rows() -> None:
    board = board_of(many(3))
    row = board.groups[0].rows[1].id
    page = html.page(board, curves={row: {"seed 0": {"step": [0, 1]}}}, pages={row: [["latents", "pages/a.html"]]})
    assert f'id="curves">{{"{row}"' in page
    assert f'id="pages">{{"{row}"' in page


def ratio(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return x / t


def constant(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.asarray(2.0)


def fragile(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.log(x - 0.02 * t)


@pytest.mark.parametrize("formula", [ratio, constant, fragile])
@pytest.mark.parametrize("units", [3, 12, 60])
def test_many_exchange_tests_say_what_each_says_alone(formula: Callable[..., Any], units: int) -> None:
    rng = np.random.default_rng(units)
    first = np.stack([rng.gamma(2, 1, units), rng.gamma(20, 1, units)], 1)
    others = np.stack([first, first * (1 + 1e-15), first + np.array([0.5, 0.0]), *(rng.gamma(2, 1, (40, units, 2)))])
    with np.errstate(all="ignore"):
        alone = [exchange_test(formula, first, other).p for other in others]
    found = [test.p for test in exchange_tests(formula, [others[:, :, i] for i in (0, 1)], list(first.T))]
    assert [p is None for p in found] == [p is None for p in alone]
    assert [p or 0.0 for p in found] == pytest.approx([p or 0.0 for p in alone], rel=1e-12)
    assert units == 3 or any(p is not None for p in found) or formula is fragile


def test_the_floor_of_unpaired_tests_is_exact_and_quick_where_it_is_nothing() -> None:
    assert _rarest(6, 7) == 2 / math.comb(13, 6)
    assert _rarest(500, 500) == 2 / math.comb(1000, 500)
    assert _rarest(40_000, 40_000) == 0.0


@pytest.fixture
def group(tmp_path: Path) -> RowGroup:
    suites = ["papers"] * 12 + ["mine", "mine", "quickstart"]
    cells = [Planted(name=f"{suite}/row{i}", error=0.2 + i / 50) for i, suite in enumerate(suites)]
    write(tmp_path, *cells, Planted(name="papers/row3", seed=1, error=0.26), Planted(name="mine/lost", status="failed"))
    return board_of(load(tmp_path)).groups[0]


def alone_p(column: Column, a: Row, b: Row) -> float | None:
    try:
        ours, theirs = (StatisticsReader().evidence(row.measured, column) for row in (a, b))
    except MissingStatistics:
        return None
    return 1.0 if a.values[column.key].overlaps(b.values[column.key]) else inference.difference_of(ours, theirs).test.p


def ranked(group: RowGroup, column: Column) -> list[Row]:
    return inference.ranked_rows(group.rows, column)


def test_a_small_group_has_every_pair(group: RowGroup) -> None:
    found = pairwise(group.rows, group.shown, StatisticsReader())
    directed = [column for column in group.shown if column.higher_is_better is not None]
    assert set(found) == {column.key for column in directed}
    for column in directed:
        pairs, ids = found[column.key], {row.id for row in ranked(group, column)}
        assert pairs.opponents == tuple(range(len(group.rows)))
        for i, line in enumerate(pairs.p):
            for j, p in enumerate(line):
                a, b = group.rows[i], group.rows[j]
                assert j < i
                expected = alone_p(column, a, b) if {a.id, b.id} <= ids else None
                assert p == (expected if expected is None else pytest.approx(expected, rel=1e-9))


def test_a_large_group_has_every_row_against_the_best_of_the_column_and_of_its_suites(
    group: RowGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_of, "ALL_PAIRS", 10)
    monkeypatch.setattr(pairs_of, "OPPONENTS", 3)
    monkeypatch.setattr(pairs_of, "AT_ONCE", 4)
    column = next(c for c in group.shown if c.metric == "explained_variance.centred")
    pairs = pairwise(group.rows, [column], StatisticsReader())[column.key]
    names = {group.rows[place].spec for place in pairs.opponents}
    assert names == {"papers/row0", "papers/row1", "papers/row2", "mine/row12", "quickstart/row14"}
    ids = {row.id for row in ranked(group, column)}
    for place, line in zip(pairs.opponents, pairs.p, strict=True):
        assert len(line) == len(group.rows)
        for row, p in zip(group.rows, line, strict=True):
            if row.id not in ids or row.id == group.rows[place].id:
                assert p is None
            else:
                assert p == pytest.approx(alone_p(column, group.rows[place], row), rel=1e-9)


def test_the_tests_of_a_large_group_grow_with_its_rows_and_read_each_file_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path, *[Planted(label=f"case-{i}", error=0.2 + i / 500) for i in range(90)])
    counted, read = [], []
    alone, reading = inference.exchange_tests, StatisticsReader._read_or_reason
    monkeypatch.setattr(inference, "exchange_tests", lambda f, a, b, u: counted.append(len(a[0])) or alone(f, a, b, u))
    monkeypatch.setattr(StatisticsReader, "_read_or_reason", lambda self, c: read.append(c[0].path) or reading(self, c))
    group = board_of(load(tmp_path), short=True).groups[0]
    rows, column = group.rows, next(c for c in group.shown if c.higher_is_better is not None)
    counted.clear()
    work, files = {}, {}
    for size in (45, 90):
        read.clear()
        pairwise(rows[:size], [column], StatisticsReader())
        work[size], files[size] = sum(counted), len(read)
        counted.clear()
    assert work[45] == 44 * pairs_of.OPPONENTS, "no row is tested against itself"
    assert work[90] == 89 * pairs_of.OPPONENTS
    assert files[90] <= 90 + pairs_of.OPPONENTS
