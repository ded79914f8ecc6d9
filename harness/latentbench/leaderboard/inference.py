"""Intervals, tests and ties of rows, from their statistics per unit.

Statistics are read once; that they give the recorded numbers was checked on loading. Tests are paired where unit i is
the same thing in all rows.

Rows that cannot be told from the best of their group are tied with it. A row is *behind* only if the test over documents
(or problems, or latents) says so, Holm-adjusted over all pairs of the column (the best was picked by the same data), and
the seeds do not contradict it: where both rows have several seeds, their ranges over seeds must not overlap. Partial rows
are not ranked.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentbench.core.errors import LatentbenchError, RefusedFile
from latentbench.leaderboard.board import Column, Row, RowVerdict
from latentbench.leaderboard.load import LoadedRecord, suite_of
from latentbench.metrics.base import Estimator
from latentbench.metrics.recorded import estimators, tallies
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array, Statistics
from latentbench.statistics.paired import (
    ALPHA,
    Difference,
    Formula,
    TestResult,
    difference,
    exchange_test,
    exchange_tests,
    holm,
    interval,
    mean_over_seeds,
    replicates,
)
from latentbench.statistics.unpaired import unpaired_difference, unpaired_interval, unpaired_test

_KEPT = 64
"""Records whose statistics stay in memory: a column's rows are asked for again and again, a results folder may not fit."""


class MissingStatistics(LatentbenchError):
    """No statistics for a number, with the reason; the number is shown without interval and test."""


@dataclass(frozen=True)
class UnitStatistics:
    """What intervals and tests of one number need."""

    formula: Formula
    inputs: tuple[Array, ...]
    """Per seed the statistics [units, inputs]."""
    units: str = "documents"
    """What the statistics are per, in the plural."""
    paired: bool = True
    """Whether unit i is the same thing in every row and seed, as a document is and a latent is not."""


class StatisticsReader:
    """Reads statistics per unit; remembers what it read last and what it had to refuse."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._statistics: OrderedDict[str, Statistics | str] = OrderedDict()
        self._numbers: dict[str, dict[str, MetricValue]] = {}

    def evidence(self, cells: Sequence[LoadedRecord], column: Column) -> UnitStatistics:
        """What intervals and tests of a column need, over the seeds of a row. Raises MissingStatistics."""
        estimator = estimator_of(cells[0], column)
        if estimator is None:
            raise MissingStatistics("no per-document statistics")
        inputs = tuple(self._inputs(cell, estimator, column) for cell in cells)
        if estimator.paired and len({len(stats) for stats in inputs}) > 1:
            raise MissingStatistics(f"the seeds were measured on different numbers of {estimator.units}")
        return UnitStatistics(estimator.formula, inputs, estimator.units, estimator.paired)

    def numbers(self, cell: LoadedRecord) -> dict[str, MetricValue]:
        """A cell's numbers by the key of their column."""
        if cell.path not in self._numbers:
            self._numbers[cell.path] = {Column.of(metric).key: metric for metric in cell.numbers}
        return self._numbers[cell.path]

    def _inputs(self, cell: LoadedRecord, estimator: Estimator, column: Column) -> Array:
        statistics = self._read(cell)
        names = [f"{column.domain}/{name}" for name in estimator.names(column.budget)]
        missing = [name for name in names if name not in statistics]
        if missing:
            raise MissingStatistics(f"no statistics {', '.join(missing)}")
        if len({len(statistics[name]) for name in names}) > 1:
            raise MissingStatistics("statistics of different lengths")
        return np.stack([statistics[name] for name in names], axis=1)

    def _read(self, cell: LoadedRecord) -> Statistics:
        if cell.path not in self._statistics:
            self._statistics[cell.path] = self._read_or_reason(cell)
        self._statistics.move_to_end(cell.path)
        while len(self._statistics) > _KEPT:
            self._statistics.popitem(last=False)
        found = self._statistics[cell.path]
        if isinstance(found, str):
            raise MissingStatistics(found)
        return found

    def _read_or_reason(self, cell: LoadedRecord) -> Statistics | str:
        if cell.record.documents is None:
            return "no per-document statistics"
        try:
            return cell.statistics()
        except RefusedFile as error:
            self.problems[cell.path] = str(error)
            return str(error)


def estimator_of(cell: LoadedRecord, column: Column) -> Estimator | None:
    """The estimator behind a column, None where this installation knows none."""
    return estimators(cell.metrics_section).get((column.metric, column.version, column.params))


def units_of(cell: LoadedRecord, column: Column, method: str | None = None) -> str:
    """What a column's number has `n` of: by its metric, else by the method of its interval, else nothing known."""
    estimator = estimator_of(cell, column)
    if estimator is not None:
        return estimator.units
    named = re.match(r"([a-z]+) (bootstrap|normal)", method or "")
    if named:
        return f"{named[1]}s"
    return "documents" if column.metric in tallies(cell.metrics_section) else ""


def interval_of(evidence: UnitStatistics) -> tuple[float | None, float | None]:
    """95 % interval of a row's mean over seeds."""
    if evidence.paired:
        return interval(replicates(evidence.formula, evidence.inputs), len(evidence.inputs[0]))
    return unpaired_interval(evidence.formula, evidence.inputs)


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


def tested(a: UnitStatistics, b: UnitStatistics) -> TestResult:
    """Two-sided test of A against B."""
    if reason := mismatch(a, b):
        return TestResult(None, reason)
    if a.paired:
        return exchange_test(a.formula, mean_over_seeds(a.inputs), mean_over_seeds(b.inputs), a.units)
    return unpaired_test(a.formula, a.inputs, b.inputs, a.units)


def condensed(evidence: UnitStatistics) -> UnitStatistics:
    """Statistics that give the same tests at less cost: one average seed, to which the paired tests are indifferent."""
    return replace(evidence, inputs=(mean_over_seeds(evidence.inputs),)) if evidence.paired else evidence


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
    leading = {
        place: _held(rows[place], entered, source)
        for place in sorted({place for places in opponents.values() for place in places})
    }
    found: dict[Column, list[list[float | None]]] = {c: [[] for _ in places] for c, places in opponents.items()}
    for part in (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)):
        held = [_held(row, entered, source) for row in part]
        for column, places in opponents.items():
            for line, place in zip(found[column], places, strict=True):
                others = list(zip(part, held, strict=True))[: place if len(rows) <= ALL_PAIRS else None]
                theirs = [(other, statistics[column]) for other, statistics in others]
                line += _against(rows[place], leading[place][column], theirs, column)
    return {column.key: TestedPairs(opponents[column], tuple(found[column])) for column in directed}


def _opponents(rows: Sequence[Row], column: Column) -> tuple[int, ...]:
    if len(rows) <= ALL_PAIRS:
        return tuple(range(len(rows)))
    places, ranked = {row.id: place for place, row in enumerate(rows)}, ranked_rows(rows, column)
    sign = -1 if column.higher_is_better else 1
    ordered = sorted(ranked, key=lambda row: sign * (row.values[column.key].value or 0.0))
    # A reader who keeps one suite asks for its best row.
    of_suites = {suite_of(row.spec): row for row in reversed(ordered)}
    suites = sorted(of_suites.values(), key=ordered.index)[:OPPONENTS]
    return tuple(sorted({places[row.id] for row in (*ordered[:OPPONENTS], *suites)}))


def _held(
    row: Row, entered: Mapping[Column, set[str]], source: StatisticsReader
) -> dict[Column, UnitStatistics | None]:
    """A row's statistics in all columns, so that its files are read once; None where it is not ranked or has none."""
    return {column: _averaged(row, column, source) if row.id in ids else None for column, ids in entered.items()}


def _against(
    row: Row, ours: UnitStatistics | None, others: Sequence[tuple[Row, UnitStatistics | None]], column: Column
) -> list[float | None]:
    """p-values of a row with each of the others."""
    quick = _exchanged(ours, [theirs for _, theirs in others])

    def p(place: int, other: Row, theirs: UnitStatistics | None) -> float | None:
        if ours is None or theirs is None or other.id == row.id:
            return None
        if row.values[column.key].overlaps(other.values[column.key]):
            return 1.0
        return quick[place] if place in quick else tested(ours, theirs).p

    return [p(place, *other) for place, other in enumerate(others)]


def _exchanged(ours: UnitStatistics | None, others: Sequence[UnitStatistics | None]) -> dict[int, float | None]:
    """Place to p-value of all paired tests together."""
    found = {i: theirs for i, theirs in enumerate(others) if theirs is not None}
    if ours is None or not ours.paired:
        return {}
    alike = {i: theirs.inputs[0] for i, theirs in found.items() if mismatch(ours, theirs) is None}
    if not alike:
        return {}
    stacked = np.stack(list(alike.values()))
    # One array per input, in which a row's units lie side by side.
    inputs = [np.ascontiguousarray(stacked[:, :, place]) for place in range(stacked.shape[2])]
    tests = exchange_tests(ours.formula, inputs, list(ours.inputs[0].T), ours.units)
    return {place: test.p for place, test in zip(alike, tests, strict=True)}


def _tests(
    rows: Sequence[Row], contenders: Mapping[Column, list[Row]], best: Mapping[Column, Row], source: StatisticsReader
) -> dict[tuple[str, str], TestResult]:
    """Every contender against the best of its column; row by row, so that each file is read once."""
    leaders = {column: _statistics_or_reason(row, column, source) for column, row in best.items()}
    entered = {column: {row.id for row in found} for column, found in contenders.items()}
    tests: dict[tuple[str, str], TestResult] = {}
    for row in rows:
        for column, leader in leaders.items():
            if row.id in entered[column] and row.id != best[column].id:
                own = leader if isinstance(leader, str) else _statistics_or_reason(row, column, source)
                both = isinstance(leader, UnitStatistics) and isinstance(own, UnitStatistics)
                tests[row.id, column.key] = tested(leader, own) if both else TestResult(None, f"not testable: {own}")  # type: ignore[arg-type]
    return tests


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


def _averaged(row: Row, column: Column, source: StatisticsReader) -> UnitStatistics | None:
    found = _statistics_or_reason(row, column, source)
    return condensed(found) if isinstance(found, UnitStatistics) else None


def _statistics_or_reason(row: Row, column: Column, source: StatisticsReader) -> UnitStatistics | str:
    try:
        return source.evidence(row.measured, column)
    except MissingStatistics as error:
        return str(error)
