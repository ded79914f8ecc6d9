"""Is A better than B where nothing pairs them? Latents of two SAEs are different things, and so are those of two seeds.

Every number is then a mean of independent samples' estimates, θ = Σ_j c_j θ_j, one sample per seed (c_j = 1/S for a row
of S seeds, and −1/S for the other row of a difference).

*Test.* Each θ_j gets the jackknife variance of its formula, v_j = (n_j − 1)/n_j · Σ_i (θ_(i) − θ_(·))², which is the
variance of its linearised influence values; θ / √(Σ c_j² v_j) is referred to Student's t with the degrees of freedom of
Welch and Satterthwaite, (Σ c_j² v_j)² / Σ ((c_j² v_j)² / (n_j − 1)). For a formula that is a plain mean this is Welch's
t-test. The p-value is never below that of the most extreme of all divisions of the units among the two sides.

*Interval.* Every sample is resampled on its own; its deviations are widened by √(n_j / (n_j − 1)), and the quantiles are
taken at Φ(±t) with the same degrees of freedom (the expanded percentile interval of harness/latentbench/statistics/intervals.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import MINIMUM_DOCUMENTS, quantiles
from latentbench.statistics.paired import (
    LEVEL,
    MINIMUM_UNITS,
    ROUNDING,
    Difference,
    Formula,
    Inputs,
    TestResult,
    counted,
    estimate,
)
from latentbench.statistics.resampling import drawn_sums

_LARGEST = 760.0
"""Logarithm from which 2 / x is less than half of the smallest float, with room for rounding."""


@dataclass(frozen=True)
class Sample:
    """One seed's units and the coefficient of its estimate."""

    stats: Array
    """[units, inputs]"""
    coefficient: float
    stream: int
    """Numbers the samples of a statement, so that each is resampled with draws of its own."""


Ends = tuple[float | None, float | None]
"""Of an interval; None where there is none."""


def unpaired_interval(formula: Formula, seeds: Inputs, level: float = LEVEL) -> Ends:
    """95 % interval of the mean over seeds whose units are different things."""
    return _interval(formula, _samples(seeds, 1.0), level)


def equal_intervals(
    formula: Formula, stats: Sequence[Array], drawn: Sequence[Array], level: float = LEVEL
) -> list[Ends]:
    """`unpaired_interval` of many columns over seeds that have equally many units, from one evaluation for all of them.

    `stats` [inputs][seeds, columns, units]; `drawn` [inputs][seeds, columns, resamples]: their sums over units drawn again,
    apart in each seed.
    """
    seeds, columns, n = stats[0].shape
    if n < MINIMUM_DOCUMENTS:
        return [(None, None)] * columns
    centers, jackknifed = _moments(formula, stats)
    with np.errstate(all="ignore"):
        values = np.broadcast_to(formula(*drawn), drawn[0].shape)
        deviations = (values - centers[..., None]).sum(0) * (math.sqrt(n / (n - 1)) / seeds)
    spread = jackknifed / seeds**2
    return [_ends(deviations[c], float(centers[:, c].mean()), spread[:, c], [n] * seeds, level) for c in range(columns)]


def unpaired_difference(formula: Formula, a: Inputs, b: Inputs, units: str) -> Difference:
    """A minus B with a 95 % interval and a two-sided p-value; the units of A and of B are different things."""
    low, high = _interval(formula, _both(a, b), LEVEL)
    return Difference(estimate(formula, a) - estimate(formula, b), low, high, unpaired_test(formula, a, b, units))


def unpaired_test(formula: Formula, a: Inputs, b: Inputs, units: str) -> TestResult:
    """Two-sided test that the formula agrees on A and B, over statistics [units, inputs] per seed."""
    return welch_test(estimated(formula, a), estimated(formula, b), units)


@dataclass(frozen=True)
class Estimates:
    """All that a test needs of a row: so that testing many rows against each other evaluates each row's formula once."""

    mean: float
    """Over seeds."""
    variances: tuple[float, ...]
    """v_j of each seed."""
    units: tuple[int, ...]
    """n_j of each seed."""


def estimated(formula: Formula, seeds: Inputs) -> Estimates:
    """Estimates and jackknife variances of a row, from statistics [units, inputs] per seed."""
    variances = tuple(_jackknife(formula, stats) for stats in seeds)
    return Estimates(estimate(formula, seeds), variances, tuple(len(stats) for stats in seeds))


def equal_estimates(formula: Formula, stats: Sequence[Array]) -> list[Estimates]:
    """`estimated` of many columns over seeds that have equally many units, from one evaluation for all of them.

    `stats` [inputs][seeds, columns, units].
    """
    centers, variances = _moments(formula, stats)
    seeds, columns, n = stats[0].shape
    return [
        Estimates(float(centers[:, c].mean()), tuple(variances[:, c].tolist()), (n,) * seeds) for c in range(columns)
    ]


def _moments(formula: Formula, stats: Sequence[Array]) -> tuple[Array, Array]:
    """[seeds, ...] θ_j and [seeds, ...] v_j from statistics [inputs][seeds, ..., units]."""
    sums, n = [own.sum(-1, keepdims=True) for own in stats], stats[0].shape[-1]
    with np.errstate(all="ignore"):
        centers = np.broadcast_to(formula(*sums), sums[0].shape)[..., 0]
        left = formula(*(total - own for total, own in zip(sums, stats, strict=True)))
        # A formula that ignores its inputs (a constant) gives one number for all.
        without = np.broadcast_to(left, stats[0].shape)
        return centers, (n - 1) * without.var(-1)


def welch_test(a: Estimates, b: Estimates, units: str) -> TestResult:
    """Two-sided test that A and B are equally good."""
    fewest = min(*a.units, *b.units)
    if fewest < MINIMUM_UNITS:
        return TestResult(None, f"not testable with n = {counted(fewest, units)}")
    variances = np.array([v / len(side.units) ** 2 for side in (a, b) for v in side.variances])
    value = a.mean - b.mean
    if not math.isfinite(value) or not np.isfinite(variances).all():
        return TestResult(None, f"not testable: the formula is not finite when one of the {units} is left out")
    sizes = (*a.units, *b.units)
    return TestResult(
        _two_sided(value, variances, sizes, abs(a.mean) + abs(b.mean), _rarest(sum(a.units), sum(b.units)))
    )


def _samples(seeds: Inputs, sign: float, first: int = 0) -> list[Sample]:
    return [Sample(stats, sign / len(seeds), first + i) for i, stats in enumerate(seeds)]


def _both(a: Inputs, b: Inputs) -> list[Sample]:
    return [*_samples(a, 1.0), *_samples(b, -1.0, len(a))]


def _variances(formula: Formula, samples: Sequence[Sample]) -> Array:
    """[samples] variance of each term c_j θ_j."""
    return np.array([sample.coefficient**2 * _jackknife(formula, sample.stats) for sample in samples])


def _jackknife(formula: Formula, stats: Array) -> float:
    """v_j of one sample: from the formula with each unit left out, all at once."""
    n = len(stats)
    with np.errstate(all="ignore"):
        # A formula that ignores its inputs (a constant) gives one number for all.
        without = np.broadcast_to(formula(*(stats.sum(0) - stats).T), n)
        return float((n - 1) * without.var())


def _freedom(variances: Array, sizes: Sequence[int]) -> float:
    """Degrees of freedom of Welch and Satterthwaite: close to those of the sample that contributes most of the variance."""
    each = sum(v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True))
    return float(variances.sum() ** 2 / each)


def _two_sided(value: float, variances: Array, sizes: Sequence[int], scale: float, floor: float) -> float:
    from scipy.special import stdtr

    if abs(value) <= ROUNDING * scale:
        return 1.0
    spread = math.sqrt(variances.sum())
    if spread <= ROUNDING * abs(value):
        return floor
    return max(2 * float(stdtr(_freedom(variances, sizes), -abs(value) / spread)), floor)


@lru_cache(maxsize=4096)
def _rarest(ours: int, theirs: int) -> float:
    """The smallest p-value of a permutation of all units among the sides."""
    # Two of all divisions, the observed one and its mirror image. Python's integers keep the binomial exact; where it has
    # more digits than a float can divide by, which its logarithm tells at once, the quotient is 0, which floors nothing.
    size = math.lgamma(ours + theirs + 1) - math.lgamma(ours + 1) - math.lgamma(theirs + 1)
    return 0.0 if size > _LARGEST else 2 / math.comb(ours + theirs, ours)


def _interval(formula: Formula, samples: Sequence[Sample], level: float) -> Ends:
    sizes = [len(sample.stats) for sample in samples]
    if min(sizes) < MINIMUM_DOCUMENTS:
        return None, None
    values = sum(_deviations(formula, sample) for sample in samples)
    center = sum(sample.coefficient * estimate(formula, [sample.stats]) for sample in samples)
    return _ends(np.asarray(values), center, _variances(formula, samples), sizes, level)


def _ends(deviations: Array, center: float, variances: Array, sizes: Sequence[int], level: float) -> Ends:
    """From deviations [resamples] of a statement, its value, and the variance [samples] of each of its terms."""
    from scipy.special import ndtr, stdtrit

    if not (np.isfinite(deviations).all() and np.isfinite(variances).all()):
        return None, None
    if not variances.any():  # all units alike: the degrees of freedom would be 0/0
        return center, center
    tail = float(ndtr(-stdtrit(_freedom(variances, sizes), (1 + level) / 2)))
    low, high = quantiles(deviations, (tail, 1 - tail)).tolist()
    return center + low, center + high


def _deviations(formula: Formula, sample: Sample) -> Array:
    """[resamples] deviations of c_j θ_j over resamples, freed of the bootstrap's bias towards small variances.

    The factor √(n_j / (n_j − 1)) has to stand here and not in the quantile levels as for documents: samples differ in n_j.
    """
    n = len(sample.stats)
    with np.errstate(all="ignore"):
        drawn = np.asarray(formula(*drawn_sums(np.ascontiguousarray(sample.stats.T), sample.stream)), dtype=np.float64)
        center = formula(*sample.stats.sum(0))
    deviations: Array = sample.coefficient * math.sqrt(n / (n - 1)) * (drawn - center)
    return deviations
