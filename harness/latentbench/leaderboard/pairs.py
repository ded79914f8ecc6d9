"""Tests by which a page judges ties among those rows that its reader keeps: every row against the rows that may be best.

Their number grows with the rows and not with their square, and a pair is tested once: what came of it is kept with the row
under the digests of both rows' statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latentbench.leaderboard.board import Column, Row
from latentbench.leaderboard.evidence import StatisticsReader, Tested
from latentbench.leaderboard.inference import AT_ONCE, pair_tag, ranked_rows, tests_of
from latentbench.leaderboard.load import suite_of

ALL_PAIRS = 40
"""Largest group in which every row is tested against every other; their number grows with the square."""
OPPONENTS = 8
"""Rows of a larger group that all others are tested against in a column: its best, and as many again of its suites."""

_REMEMBERED = 200
"""Opponents of a row in one column beyond which those of earlier tables are forgotten."""


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
    work = _Pairs(rows, directed, source)
    for start in range(0, len(rows), AT_ONCE):
        work.test(range(start, min(len(rows), start + AT_ONCE)))
    return {column.key: work.of(column) for column in directed}


class _Pairs:
    """The tests of a group's pairs: those that are known, and those that must be made."""

    def __init__(self, rows: Sequence[Row], columns: Sequence[Column], source: StatisticsReader) -> None:
        self._rows, self._source = rows, source
        self._entered = {column: {row.id for row in ranked_rows(rows, column)} for column in columns}
        self._opponents = {column: _opponents(rows, column) for column in columns}
        self._leading: dict[int, dict[Column, Tested]] = {}
        self._p: dict[tuple[Column, int, int], float | None] = {}
        """By column, opponent and row."""
        source.pairs.fetch(row.content for row in rows if row.content)

    def test(self, part: Sequence[int]) -> None:
        """Tests some rows against all opponents, as far as nothing is known of that."""
        open_ = {place: own for place in part if (own := self._open(place))}
        held = {place: self._source.tested(self._rows[place].measured, own) for place, own in open_.items()}
        for column, opponents in self._opponents.items():
            for opponent in opponents:
                others = [place for place, own in open_.items() if opponent in own.get(column, ())]
                sides = [held[place][column] for place in others]
                tests = tests_of(self._side(opponent)[column], sides) if others else []
                self._p |= {(column, opponent, other): test.p for other, test in zip(others, tests, strict=True)}
        for place in open_:
            self._keep(place)

    def of(self, column: Column) -> TestedPairs:
        """What a page is told of a column."""
        opponents, small = self._opponents[column], len(self._rows) <= ALL_PAIRS
        # The other half of a small group's table is the same.
        lines = ([self._said(column, o, row) for row in range(o if small else len(self._rows))] for o in opponents)
        return TestedPairs(opponents, tuple(lines))

    def _said(self, column: Column, opponent: int, other: int) -> float | None:
        """The p-value, 1 where the ranges over seeds overlap, nothing of a row with itself."""
        p = self._p.get((column, opponent, other))
        ours, theirs = (self._rows[place].values for place in (opponent, other))
        return 1.0 if p is not None and ours[column.key].overlaps(theirs[column.key]) else p

    def _asked(self, place: int) -> dict[Column, list[tuple[int, str, str]]]:
        """In every column the opponents of a row, each with what the test is kept under: two rows' digests and a tag.

        Where this installation knows no statistics of a number there is nothing to test.
        """
        rows, last = self._rows, place if len(self._rows) <= ALL_PAIRS else -1
        return {
            column: [
                (o, (rows[o].content or "")[:32], tag)
                for o in opponents
                if o > last and o != place and rows[o].id in self._entered[column]
                if (tag := pair_tag(rows[o], rows[place], column))
            ]
            for column, opponents in self._opponents.items()
            if rows[place].id in self._entered[column]
        }

    def _open(self, place: int) -> dict[Column, list[int]]:
        """Takes over what is known of a row; the opponents of which nothing is known."""
        row, open_ = self._rows[place], dict[Column, list[int]]()
        known = self._source.pairs.of(row.content) if row.content else {}
        for column, asked in self._asked(place).items():
            for opponent, key, tag in asked:
                p_values = known.get(tag)
                if p_values is not None and key in p_values:
                    self._p[column, opponent, place] = p_values[key]
                else:
                    open_.setdefault(column, []).append(opponent)
        return open_

    def _keep(self, place: int) -> None:
        """Adds what this table asked of a row to what earlier ones did: two rows may be one SAE in two specs."""
        row, found = self._rows[place], dict[str, dict[str, float | None]]()
        known = self._source.pairs.of(row.content) if row.content else {}
        for column, asked in self._asked(place).items():
            for opponent, key, tag in asked:
                if tag not in found:
                    earlier = known.get(tag, {})
                    found[tag] = dict(earlier) if len(earlier) < _REMEMBERED else {}
                found[tag][key] = self._p[column, opponent, place]
        if row.content:
            self._source.pairs.keep(
                row.content, {tag: {k: p for k, p in own.items() if k} for tag, own in found.items()}
            )

    def _side(self, opponent: int) -> Mapping[Column, Tested]:
        if opponent not in self._leading:
            columns = [column for column, places in self._opponents.items() if opponent in places]
            self._leading[opponent] = self._source.tested(self._rows[opponent].measured, columns)
        return self._leading[opponent]


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
