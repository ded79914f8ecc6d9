"""Tests and ties of rows, from their statistics per unit. Tests are paired where unit i is the same thing in all rows.

Rows that cannot be told from the best of their group are tied with it. A row is *behind* only if the test over documents
(or problems, or latents) says so, Holm-adjusted over all pairs of the column (the best was picked by the same data), and
the seeds do not contradict it: where both rows have several seeds, their ranges over seeds must not overlap. Partial rows
are not ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from latentbench.leaderboard.board import Column, Row, RowVerdict
from latentbench.leaderboard.evidence import (
    UNKNOWN,
    AverageSeed,
    SeedsApart,
    StatisticsReader,
    Tested,
    UnitStatistics,
    tag_of,
)
from latentbench.statistics.paired import (
    ALPHA,
    Difference,
    TestResult,
    difference,
    exchange_tests,
    holm,
)
from latentbench.statistics.unpaired import unpaired_difference, welch_test


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


AT_ONCE = 256
"""Rows whose statistics are held together while they are tested: a results folder may not fit into memory."""


def tests_of(ours: Tested, others: Sequence[Tested]) -> list[TestResult]:
    """Tests of one row against each of others in one column."""
    if isinstance(ours, str):
        return [TestResult(None, f"not testable: {ours}")] * len(others)
    if isinstance(ours, AverageSeed):
        return _exchanged(ours, others)
    return [
        welch_test(ours.estimates, other.estimates, ours.units)
        if isinstance(other, SeedsApart)
        else TestResult(None, f"not testable: {other if isinstance(other, str) else UNKNOWN}")
        for other in others
    ]


def _exchanged(ours: AverageSeed, others: Sequence[Tested]) -> list[TestResult]:
    """Paired tests of one with many."""
    found: list[TestResult] = []
    alike: dict[int, AverageSeed] = {}
    for place, other in enumerate(others):
        reason = other if isinstance(other, str) else UNKNOWN
        if isinstance(other, AverageSeed):
            reason = "" if len(ours.inputs[0]) == len(other.inputs[0]) else f"different numbers of {ours.units}"
            if not reason:
                alike[place] = other
        found.append(TestResult(None, f"not testable: {reason}" if reason else None))
    if alike:
        # One array per input, in which a row's units lie side by side.
        inputs = [np.stack(column) for column in zip(*(other.inputs for other in alike.values()), strict=True)]
        tests = exchange_tests(ours.formula, inputs, ours.inputs, ours.units)
        for place, test in zip(alike, tests, strict=True):
            found[place] = test
    return found


Tests = dict[tuple[str, str], TestResult]


def _tests(
    rows: Sequence[Row], contenders: Mapping[Column, list[Row]], best: Mapping[Column, Row], source: StatisticsReader
) -> Tests:
    """Every contender against the best of its column, by row id and column key."""
    entered = {
        column: {row.id for row in found} - {best[column].id} for column, found in contenders.items() if column in best
    }
    source.tests.fetch(_pairs(rows, entered, best))
    leaders: dict[Column, Tested] = {}
    tests: Tests = {}
    # Files are read row by row, and columns tested in one go: as many rows at a time as fit into memory with their statistics.
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        open_ = {row.id: _known(row, entered, best, source, tests) for row in part}
        held = {row.id: source.tested(row.measured, open_[row.id]) for row in part if open_[row.id]}
        for column in entered:
            own = [row for row in part if column in held.get(row.id, ())]
            if own and column not in leaders:
                leaders[column] = source.tested(best[column].measured, [column])[column]
            results = tests_of(leaders[column], [held[row.id][column] for row in own]) if own else []
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


def pair_tag(leader: Row, row: Row, column: Column) -> str | None:
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
            known, tag = against[id(leader)], pair_tag(leader, row, column)
            if known and tag and tag in known:
                tests[row.id, column.key] = TestResult(*known[tag])
            else:
                unknown.append(column)
    return unknown


def _keep(row: Row, leader: Row, column: Column, result: TestResult, source: StatisticsReader) -> None:
    key, tag = _pair_key(leader, row), pair_tag(leader, row, column)
    if key and tag:
        source.tests.keep(key, {tag: [result.p, result.reason]})


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
