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

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import MINIMUM_DOCUMENTS, RESAMPLES
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

_NOTHING = 760.0
"""The smallest positive number is exp(−745)."""


@dataclass(frozen=True)
class Sample:
    """One seed's units and the coefficient of its estimate."""

    stats: Array
    """[units, inputs]"""
    coefficient: float
    stream: int
    """Numbers the samples of a statement, so that each is resampled with draws of its own."""


def unpaired_interval(formula: Formula, seeds: Inputs, level: float = LEVEL) -> tuple[float | None, float | None]:
    """95 % interval of the mean over seeds whose units are different things."""
    return _interval(formula, _samples(seeds, 1.0), level)


def unpaired_difference(formula: Formula, a: Inputs, b: Inputs, units: str) -> Difference:
    """A minus B with a 95 % interval and a two-sided p-value; the units of A and of B are different things."""
    low, high = _interval(formula, _both(a, b), LEVEL)
    return Difference(estimate(formula, a) - estimate(formula, b), low, high, unpaired_test(formula, a, b, units))


def unpaired_test(formula: Formula, a: Inputs, b: Inputs, units: str) -> TestResult:
    """Two-sided test that the formula agrees on A and B, over statistics [units, inputs] per seed."""
    fewest = min(len(stats) for stats in (*a, *b))
    if fewest < MINIMUM_UNITS:
        return TestResult(None, f"not testable with n = {counted(fewest, units)}")
    samples = _both(a, b)
    variances = _variances(formula, samples)
    value = estimate(formula, a) - estimate(formula, b)
    if not math.isfinite(value) or not np.isfinite(variances).all():
        return TestResult(None, f"not testable: the formula is not finite when one of the {units} is left out")
    scale = abs(estimate(formula, a)) + abs(estimate(formula, b))
    return TestResult(_two_sided(value, variances, samples, scale, _floor(a, b)))


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


def _freedom(variances: Array, samples: Sequence[Sample]) -> float:
    """Degrees of freedom of Welch and Satterthwaite: close to those of the sample that contributes most of the variance."""
    each = sum(v**2 / (len(sample.stats) - 1) for v, sample in zip(variances, samples, strict=True))
    return float(variances.sum() ** 2 / each)


def _two_sided(value: float, variances: Array, samples: Sequence[Sample], scale: float, floor: float) -> float:
    if abs(value) <= ROUNDING * scale:
        return 1.0
    spread = math.sqrt(variances.sum())
    if spread <= ROUNDING * abs(value):
        return floor
    return max(2 * float(stdtr(_freedom(variances, samples), -abs(value) / spread)), floor)


def _floor(a: Inputs, b: Inputs) -> float:
    """The smallest p-value of a permutation of all units among the sides."""
    ours, theirs = (sum(len(stats) for stats in side) for side in (a, b))
    # Two of all divisions, the observed one and its mirror image. Python's integers keep the binomial exact; where it has
    # hundreds of digits the quotient is 0, which floors nothing, and its many products need not be formed.
    logarithm = math.lgamma(ours + theirs + 1) - math.lgamma(ours + 1) - math.lgamma(theirs + 1)
    return 0.0 if logarithm > _NOTHING else 2 / math.comb(ours + theirs, ours)


def _interval(formula: Formula, samples: Sequence[Sample], level: float) -> tuple[float | None, float | None]:
    if min(len(sample.stats) for sample in samples) < MINIMUM_DOCUMENTS:
        return None, None
    values = sum(_deviations(formula, sample) for sample in samples)
    center = sum(sample.coefficient * estimate(formula, [sample.stats]) for sample in samples)
    variances = _variances(formula, samples)
    if not (np.isfinite(values).all() and np.isfinite(variances).all()):
        return None, None
    if not variances.any():  # all units alike: the degrees of freedom would be 0/0
        return center, center
    tail = float(ndtr(-stdtrit(_freedom(variances, samples), (1 + level) / 2)))
    low, high = np.quantile(values, (tail, 1 - tail))
    return center + float(low), center + float(high)


def _deviations(formula: Formula, sample: Sample) -> Array:
    """[resamples] deviations of c_j θ_j over resamples, freed of the bootstrap's bias towards small variances.

    The factor √(n_j / (n_j − 1)) has to stand here and not in the quantile levels as for documents: samples differ in n_j.
    """
    n = len(sample.stats)
    with np.errstate(all="ignore"):
        drawn = np.asarray(formula(*_resampled(sample).T), dtype=np.float64)
        center = formula(*sample.stats.sum(0))
    deviations: Array = sample.coefficient * math.sqrt(n / (n - 1)) * (drawn - center)
    return deviations


def _resampled(sample: Sample) -> Array:
    """[resamples, inputs] sums over units drawn again.

    One resample at a time: the matrix of weights that documents use would take 2,000 × 8 bytes for each of tens of thousands
    of latents.
    """
    n = len(sample.stats)
    # `stream` gives every sample draws of its own; with equal draws two SAEs would be paired by latent number.
    generator = np.random.default_rng([sample.stream, n])
    draws = (np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    return np.stack([counts @ sample.stats for counts in draws])
