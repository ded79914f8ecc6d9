"""Intervals of all numbers of a row from one resampling of its statistics, and what tests need of them.

Most numbers share a formula (a mean, a ratio of errors) and differ in the statistics that go into it. Those are evaluated
together, all seeds and resamples at once. Formulas are elementwise, so a number has the same digits among others as alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import MINIMUM_DOCUMENTS, expanded_levels, quantiles
from latentbench.statistics.paired import LEVEL, Formula, mean_of_replicates
from latentbench.statistics.seeds import SeedStatistics
from latentbench.statistics.unpaired import Ends, Estimates, equal_estimates, equal_intervals

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_TOGETHER = 16
"""Numbers that are evaluated together: what three seeds hold of them stays near the processor."""


@dataclass(frozen=True)
class AskedNumber:
    """A number whose interval or test is asked for."""

    formula: Formula
    names: tuple[str, ...]
    """The statistics whose sums the formula takes."""
    paired: bool
    """Whether unit i is the same thing in every seed."""


def intervals_of(row: SeedStatistics, asked: Mapping[str, AskedNumber]) -> dict[str, Ends]:
    """95 % intervals of the means over a row's seeds, all of which have what is asked for, over as many units."""
    with _one_thread():
        return _intervals_of(row, asked)


def _intervals_of(row: SeedStatistics, asked: Mapping[str, AskedNumber]) -> dict[str, Ends]:
    found: dict[str, Ends] = dict.fromkeys(asked, (None, None))
    replicated: dict[int, list[tuple[list[str], Array]]] = {}
    for n, numbers in _alike(row, asked, MINIMUM_DOCUMENTS):
        one = asked[numbers[0]]
        inputs = list(zip(*(asked[number].names for number in numbers), strict=True))
        sums = [row.sums(names, apart=not one.paired) for names in inputs]
        if one.paired:
            replicated.setdefault(n, []).append((numbers, mean_of_replicates(one.formula, sums)))
        else:
            stats = [row.stats(names) for names in inputs]
            found |= dict(zip(numbers, equal_intervals(one.formula, stats, sums), strict=True))
    for n, parts in replicated.items():
        found |= _percentiles(n, [number for numbers, _ in parts for number in numbers], [own for _, own in parts])
    return found


def _one_thread() -> AbstractContextManager[object]:
    """While open, matrices are multiplied in one thread: others only wait for each other, and the digits depend on their number."""
    found: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return found


@cache
def _libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController  # tables of known records need none of it

    return ThreadpoolController()


def estimates_of(row: SeedStatistics, asked: Mapping[str, AskedNumber]) -> dict[str, Estimates]:
    """What unpaired tests need of a row's numbers, all of which have what is asked for, over as many units."""
    found: dict[str, Estimates] = {}
    for _, numbers in _alike(row, asked, 0):
        inputs = zip(*(asked[number].names for number in numbers), strict=True)
        estimates = equal_estimates(asked[numbers[0]].formula, [row.stats(names) for names in inputs])
        found |= dict(zip(numbers, estimates, strict=True))
    return found


def _alike(row: SeedStatistics, asked: Mapping[str, AskedNumber], fewest: int) -> Iterator[tuple[int, list[str]]]:
    """Numbers of one formula over as many units, a few at a time, with how many those are; none with too few units."""
    alike: dict[tuple[int, int, int, bool], list[str]] = {}
    for number, one in asked.items():
        n = row.units(one.names) or 0
        if n >= fewest:
            alike.setdefault((n, id(one.formula), len(one.names), one.paired), []).append(number)
    for (n, *_), numbers in alike.items():
        yield from ((n, numbers[start : start + _TOGETHER]) for start in range(0, len(numbers), _TOGETHER))


def _percentiles(n: int, numbers: Sequence[str], values: Sequence[Array]) -> dict[str, Ends]:
    """Of replicates [numbers, resamples], in parts; a number that is not finite on each of them has no interval."""
    replicates = np.concatenate(values)
    finite = np.flatnonzero(np.isfinite(replicates).all(-1))
    kept = [numbers[place] for place in finite.tolist()]
    whole = len(kept) == len(numbers)
    lows, highs = quantiles(replicates if whole else replicates[finite], expanded_levels(n, LEVEL))
    return dict(zip(kept, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))
