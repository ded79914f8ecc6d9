"""Tests and ties of rows, from their statistics per unit. Tests are paired where unit i is the same thing in all rows.

Rows that cannot be told from the best of their group are tied with it. A row is *behind* only if the test over documents
(or problems, or latents) says so, Holm-adjusted over all pairs of the column (the best was picked by the same data), and
the seeds do not contradict it: where both rows have several seeds, their ranges over seeds must not overlap. Partial rows
are not ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentbench.leaderboard.board import Column, Row, RowVerdict
from latentbench.leaderboard.evidence import MissingStatistics, StatisticsReader, UnitStatistics, tag_of
from latentbench.leaderboard.load import suite_of
from latentbench.statistics.arrays import Array
from latentbench.statistics.paired import (
    ALPHA,
    Difference,
    TestResult,
    difference,
    exchange_tests,
    holm,
)
from latentbench.statistics.unpaired import (
    Estimates,
    equal_estimates,
    estimated,
    unpaired_difference,
    welch_test,
)


def mismatch(a: UnitStatistics, b: UnitStatistics) -> str | None:
    """Why two rows cannot be tested against each other, None when they can."""
    if a.paired and len(a.inputs[0]) != len(b.inputs[0]):
        return f"not testable: different numbers of {a.units}"
    return None


def difference_of(a: UnitStatistics, b: UnitStatistics) -> Difference:
    """A minus B; they must not be mismatched."""
    if a.paired:
        return difference(a.formula, a.inputs, b.inputs, a.units)
    return unpaired_difference(a.formula, a.inputs, b.inputs, a.units)


RowVerdicts = dict[tuple[str, str], RowVerdict]


def verdicts_of(rows: Sequence[Row], columns: Iterable[Column], source: StatisticsReader) -> RowVerdicts:
    """Verdicts of all ranked rows in all columns that have a direction."""
    directed = [column for column in columns if column.higher_is_better is not None]
    contenders = {column: ranked_rows(rows, column) for column in directed}
    best = {column: best_row(found, column) for column, found in contenders.items() if len(found) > 1}
    tests = _tests(rows, contenders, best, source)
    return {
        key: verdict
        for column in best
        for key, verdict in _judged(contenders[column], best[column], column, tests).items()
    }


def ranked_rows(rows: Iterable[Row], column: Column) -> list[Row]:
    """Rows that take part in a column's ranking."""
    return [row for row in rows if row.complete and row.measured and row.values[column.key].value is not None]


def best_row(rows: Sequence[Row], column: Column) -> Row:
    """The row with the best number."""
    sign = 1 if column.higher_is_better else -1
    return max(rows, key=lambda row: sign * (row.values[column.key].value or 0.0))


ALL_PAIRS = 40
"""Largest group in which every row is tested against every other; their number grows with the square."""
OPPONENTS = 8
"""Rows of a larger group that all others are tested against in a column: its best, and as many again of its suites."""
_AT_ONCE = 256
"""Rows whose statistics are held together while they are tested: a results folder may not fit into memory."""


@dataclass(frozen=True)
class TestedPairs:
    """Unadjusted p-values of one column between `opponents` and every row, all of them by their place among the rows."""

    __test__ = False  # keeps pytest from collecting it

    opponents: tuple[int, ...]
    """All rows of a small group; else the best of the column and of each suite."""
    p: tuple[list[float | None], ...]
    """Per opponent the p-value of every row, in a small group of those before it; None where there is no test, 1 where
    the seeds overlap."""


def pairwise(rows: Sequence[Row], columns: Iterable[Column], source: StatisticsReader) -> dict[str, TestedPairs]:
    """Tests by which a report judges ties among a subset of the rows, for each directed column by its key.

    In a group of up to `ALL_PAIRS` rows they answer for every subset; in a larger one for those whose best row is an
    opponent, so that the work grows with the rows and not with their square.
    """
    directed = [column for column in columns if column.higher_is_better is not None]
    entered = {column: {row.id for row in ranked_rows(rows, column)} for column in directed}
    opponents = {column: _opponents(rows, column) for column in directed}
    leading = {i: _held(rows[i], entered, source) for i in sorted({i for places in opponents.values() for i in places})}
    found: dict[Column, list[list[float | None]]] = {c: [[] for _ in places] for c, places in opponents.items()}
    for start in range(0, len(rows), _AT_ONCE):
        part = range(start, min(len(rows), start + _AT_ONCE))
        held = [leading[i] if i in leading else _held(rows[i], entered, source) for i in part]
        for column, places in opponents.items():
            for line, place in zip(found[column], places, strict=True):
                # The other half of a small group's table is the same.
                others = part[:place] if len(rows) <= ALL_PAIRS else part
                statistics = [own[column] for own in held[: len(others)]]
                p_values = _p_values(leading[place][column], statistics)
                line += [_unless_seeds(rows[place], rows[i], column, p) for i, p in zip(others, p_values, strict=True)]
    return {column.key: TestedPairs(opponents[column], tuple(found[column])) for column in directed}


def _opponents(rows: Sequence[Row], column: Column) -> tuple[int, ...]:
    if len(rows) <= ALL_PAIRS:
        return tuple(range(len(rows)))
    places = {row.id: place for place, row in enumerate(rows)}
    sign = -1 if column.higher_is_better else 1
    ordered = sorted(ranked_rows(rows, column), key=lambda row: sign * (row.values[column.key].value or 0.0))
    # A reader who keeps one suite asks for its best row.
    of_suites: dict[str, Row] = {}
    for row in ordered:
        of_suites.setdefault(suite_of(row.spec), row)
    return tuple(sorted({places[row.id] for row in (*ordered[:OPPONENTS], *list(of_suites.values())[:OPPONENTS])}))


Held = UnitStatistics | Estimates | None
"""What tests need of a row: its statistics where units are paired, its estimates where they are not, None if it is not
ranked or has none."""


def _held(row: Row, entered: Mapping[Column, set[str]], source: StatisticsReader) -> dict[Column, Held]:
    """Of all columns together, so that a row's files are read once."""
    found = {c: _averaged_or_reason(row, c, source) if row.id in ids else "" for c, ids in entered.items()}
    return {
        c: None if isinstance(own, str) else own if own.paired else _estimates(own, own) for c, own in found.items()
    }


def _p_values(ours: Held, others: Sequence[Held]) -> list[float | None]:
    """Of the tests of one row with each of the others."""
    if isinstance(ours, UnitStatistics):
        tests = _exchanged(ours, [own if isinstance(own, UnitStatistics) else "no statistics" for own in others])
        return [test.p for test in tests]
    # Without a reason to show, the name of the units says nothing.
    return [welch_test(ours, own, "units").p if ours and isinstance(own, Estimates) else None for own in others]


def _unless_seeds(row: Row, other: Row, column: Column, p: float | None) -> float | None:
    """The p-value, 1 where the ranges over seeds overlap, nothing of a row with itself."""
    if p is None or row.id == other.id:
        return None
    return 1.0 if row.values[column.key].overlaps(other.values[column.key]) else p


Tests = dict[tuple[str, str], TestResult]


def _tests(
    rows: Sequence[Row], contenders: Mapping[Column, list[Row]], best: Mapping[Column, Row], source: StatisticsReader
) -> Tests:
    """Every contender against the best of its column, by row id and column key."""
    entered = {
        column: {row.id for row in found} - {best[column].id} for column, found in contenders.items() if column in best
    }
    source.tests.fetch(_pairs(rows, entered, best))
    leaders = _Leaders(best, source)
    tests: Tests = {}
    # Files are read row by row, and columns tested in one go: as many rows at a time as fit into memory with their statistics.
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        open_ = {row.id: _known(row, entered, best, source, tests) for row in part}
        held = {row.id: {c: _averaged_or_reason(row, c, source) for c in open_[row.id]} for row in part}
        for column in entered:
            own = [row for row in part if column in held[row.id]]
            results = leaders.against(column, [held[row.id][column] for row in own]) if own else []
            for row, result in zip(own, results, strict=True):
                tests[row.id, column.key] = result
                _keep(row, best[column], column, result, source)
    return tests


def _pairs(rows: Sequence[Row], entered: Mapping[Column, set[str]], best: Mapping[Column, Row]) -> Iterable[str]:
    leading = {id(best[column]): best[column] for column in entered}
    return (key for row in rows for leader in leading.values() if (key := _pair_key(leader, row)))


def _pair_key(leader: Row, row: Row) -> str | None:
    ours, theirs = leader.content, row.content
    return None if ours is None or theirs is None else f"{ours[:32]}{theirs[:32]}"


def _pair_tag(leader: Row, row: Row, column: Column) -> str | None:
    ours, theirs = tag_of(leader.measured[0], column), tag_of(row.measured[0], column)
    return None if ours is None or theirs is None else ours if ours == theirs else f"{ours}{theirs}"


def _known(
    row: Row, entered: Mapping[Column, set[str]], best: Mapping[Column, Row], source: StatisticsReader, tests: Tests
) -> list[Column]:
    """Takes what is known of a row into `tests`; the columns of which nothing is known."""
    unknown = []
    against = {
        id(leader): (key and source.tests.of(key)) for leader in best.values() for key in [_pair_key(leader, row)]
    }
    for column, ids in entered.items():
        if row.id in ids:
            leader = best[column]
            known, tag = against[id(leader)], _pair_tag(leader, row, column)
            if known and tag and tag in known:
                tests[row.id, column.key] = TestResult(*known[tag])
            else:
                unknown.append(column)
    return unknown


def _keep(row: Row, leader: Row, column: Column, result: TestResult, source: StatisticsReader) -> None:
    key, tag = _pair_key(leader, row), _pair_tag(leader, row, column)
    if key and tag:
        source.tests.keep(key, {tag: [result.p, result.reason]})


class _Leaders:
    """The best rows of columns, read where something is to be tested against them."""

    def __init__(self, best: Mapping[Column, Row], source: StatisticsReader) -> None:
        self._best, self._source = best, source
        self._held: dict[Column, UnitStatistics | str] = {}
        self._estimates: dict[Column, Estimates] = {}

    def against(self, column: Column, others: Sequence[UnitStatistics | str]) -> list[TestResult]:
        """Tests of the column's best against each of the others; a text says why one has no statistics."""
        if column not in self._held:
            self._held[column] = _averaged_or_reason(self._best[column], column, self._source)
        leader = self._held[column]
        if isinstance(leader, str):
            return [TestResult(None, f"not testable: {leader}")] * len(others)
        if leader.paired:
            return _exchanged(leader, others)
        if column not in self._estimates:
            self._estimates[column] = _estimates(leader, leader)
        return [
            TestResult(None, f"not testable: {other}")
            if isinstance(other, str)
            else welch_test(self._estimates[column], _estimates(leader, other), leader.units)
            for other in others
        ]


def _estimates(leader: UnitStatistics, row: UnitStatistics) -> Estimates:
    if len({len(stats) for stats in row.inputs}) > 1:
        return estimated(leader.formula, row.inputs)
    return equal_estimates(leader.formula, list(np.stack(row.inputs).transpose(2, 0, 1)))


def _exchanged(leader: UnitStatistics, others: Sequence[UnitStatistics | str]) -> list[TestResult]:
    """Paired tests of one with many."""
    found: list[TestResult] = []
    alike: dict[int, Array] = {}
    for place, other in enumerate(others):
        reason = f"not testable: {other}" if isinstance(other, str) else mismatch(leader, other)
        found.append(TestResult(None, reason))
        if reason is None and not isinstance(other, str):
            alike[place] = other.inputs[0]
    if alike:
        stacked = np.stack(list(alike.values()))
        # One array per input, in which a row's units lie side by side.
        inputs = [np.ascontiguousarray(stacked[:, :, place]) for place in range(stacked.shape[2])]
        tests = exchange_tests(leader.formula, inputs, list(leader.inputs[0].T), leader.units)
        for place, test in zip(alike, tests, strict=True):
            found[place] = test
    return found


def _judged(
    contenders: list[Row], best: Row, column: Column, tests: Mapping[tuple[str, str], TestResult]
) -> RowVerdicts:
    others = [row for row in contenders if row.id != best.id]
    found = {row.id: tests[row.id, column.key] for row in others}
    tested = [row for row in others if found[row.id].p is not None]
    # Which row is best was decided by the same data, so the comparisons with it are picked out of those of all pairs.
    family = len(contenders) * (len(contenders) - 1) // 2
    adjusted = holm([found[row.id].p or 0.0 for row in tested], family)
    verdicts: RowVerdicts = {(row.id, column.key): RowVerdict(None, None, found[row.id].reason) for row in others}
    for row, p in zip(tested, adjusted, strict=True):
        overlap = row.values[column.key].overlaps(best.values[column.key])
        behind = p <= ALPHA and not overlap
        reason = "the ranges over seeds overlap" if overlap and p <= ALPHA else None
        verdicts[row.id, column.key] = RowVerdict("behind" if behind else "tied", p, reason)
    # Without any test there is nothing to be best of.
    verdicts[best.id, column.key] = RowVerdict("best" if tested else None)
    return verdicts


def _averaged_or_reason(row: Row, column: Column, source: StatisticsReader) -> UnitStatistics | str:
    try:
        return source.averaged(row.measured, column)
    except MissingStatistics as error:
        return str(error)
