"""Who is really best: rows that cannot be told from the best of their group are tied with it.

A row is *behind* only if the test over documents (or problems, or latents) says so, Holm-adjusted over all pairs of the
column (the best was picked by the same data), and the seeds do not contradict it: where both rows have several seeds,
their ranges over seeds must not overlap. Partial rows are not ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from latentbench.leaderboard.board import Column, Row, Verdict
from latentbench.leaderboard.evidence import Evidence, Source, Unusable
from latentbench.leaderboard.inference import condensed, tested
from latentbench.leaderboard.statistics import ALPHA, Test, holm

Verdicts = dict[tuple[str, str], Verdict]


def verdicts_of(rows: Sequence[Row], columns: Iterable[Column], source: Source) -> Verdicts:
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


def pairwise(rows: Sequence[Row], columns: Iterable[Column], source: Source) -> dict[str, list[list[float | None]]]:
    """For each directed column the unadjusted p-values of all pairs of rows, as a lower triangle in the rows' order.

    A pair whose seeds overlap has p = 1. With these a report can judge ties among any subset of the rows.
    """
    tables: dict[str, list[list[float | None]]] = {}
    for column in columns:
        if column.higher_is_better is None:
            continue
        ranked = {row.id for row in ranked_rows(rows, column)}
        held = [_averaged(row, column, source) if row.id in ranked else None for row in rows]
        tables[column.key] = [
            [_pair(rows[i], rows[j], held[i], held[j], column) for j in range(i)] for i in range(len(rows))
        ]
    return tables


def _pair(a: Row, b: Row, ours: Evidence | None, theirs: Evidence | None, column: Column) -> float | None:
    if ours is None or theirs is None:
        return None
    return 1.0 if a.values[column.key].overlaps(b.values[column.key]) else tested(ours, theirs).p


def _tests(
    rows: Sequence[Row], contenders: Mapping[Column, list[Row]], best: Mapping[Column, Row], source: Source
) -> dict[tuple[str, str], Test]:
    """Every contender against the best of its column; row by row, so that each file is read once."""
    leaders = {column: _evidence(row, column, source) for column, row in best.items()}
    entered = {column: {row.id for row in found} for column, found in contenders.items()}
    tests: dict[tuple[str, str], Test] = {}
    for row in rows:
        for column, leader in leaders.items():
            if row.id in entered[column] and row.id != best[column].id:
                own = leader if isinstance(leader, str) else _evidence(row, column, source)
                both = isinstance(leader, Evidence) and isinstance(own, Evidence)
                tests[row.id, column.key] = tested(leader, own) if both else Test(None, f"not testable: {own}")  # type: ignore[arg-type]
    return tests


def _judged(contenders: list[Row], best: Row, column: Column, tests: Mapping[tuple[str, str], Test]) -> Verdicts:
    others = [row for row in contenders if row.id != best.id]
    found = {row.id: tests[row.id, column.key] for row in others}
    tested = [row for row in others if found[row.id].p is not None]
    family = len(contenders) * (len(contenders) - 1) // 2
    adjusted = holm([found[row.id].p or 0.0 for row in tested], family)
    verdicts: Verdicts = {(row.id, column.key): Verdict(None, None, found[row.id].reason) for row in others}
    for row, p in zip(tested, adjusted, strict=True):
        overlap = row.values[column.key].overlaps(best.values[column.key])
        behind = p <= ALPHA and not overlap
        reason = "the ranges over seeds overlap" if overlap and p <= ALPHA else None
        verdicts[row.id, column.key] = Verdict("behind" if behind else "tied", p, reason)
    # Without any test there is nothing to be best of.
    verdicts[best.id, column.key] = Verdict("best" if tested else None)
    return verdicts


def _averaged(row: Row, column: Column, source: Source) -> Evidence | None:
    found = _evidence(row, column, source)
    return condensed(found) if isinstance(found, Evidence) else None


def _evidence(row: Row, column: Column, source: Source) -> Evidence | str:
    try:
        return source.evidence(row.measured, column)
    except Unusable as error:
        return str(error)
