"""Is A better than B? Paired tests over documents and over seeds, computed from stored per-document statistics.

*Documents.* Under the null that A and B are equally good, exchanging their statistics within a document changes
nothing but the sign of that document's share of the difference. The share of document i is what the difference moves
when that document alone is exchanged, at the pooled sums (`swap_shares`); a paired t-test of these shares against zero
is the studentised form of the exact exchange test. It keeps its size (≤ 6 % at a nominal 5 %, 30 to 300 documents,
unequal lengths, skewed errors; simulated in tests/unit/test_statistics.py; 6.2 to 6.5 % where one side is extremely
skewed and the other is not) where tests linearised at the two estimates themselves reach 7 to 9 %. Its p-value is never
below 2 / 2^n, the smallest the exact test can reach, and so fewer than six documents can show nothing.

*Interval of a difference.* The same bootstrap weights re-evaluate both (harness/latentbench/statistics/intervals.py).

*Units.* What is said of documents here holds for problems too, which every row answers alike. Where rows have units of
their own (latents of different SAEs), see `unpaired`.

*Seeds* are another source of noise, kept apart: the exact sign-flip test over seeds, "not testable" below six.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import MINIMUM_DOCUMENTS, expanded_levels, weights

LEVEL = 0.95
ALPHA = 1 - LEVEL
MINIMUM_UNITS = 6
"""2 / 2^n, the smallest attainable p-value of an exchange test, is above 0.05 for fewer."""
MAXIMUM_EXACT = 16
"""Up to this many seeds all sign patterns are enumerated."""
ROUNDING = 1e-12
"""Differences below this share of the numbers themselves are rounding, not findings."""

Formula = Callable[..., Array]
Inputs = Sequence[Array]
"""One array [documents, inputs] per seed."""


@dataclass(frozen=True)
class TestResult:
    """A p-value, or why there is none."""

    __test__ = False  # keeps pytest from collecting it

    p: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """A minus B over the same documents."""

    value: float
    low: float | None
    high: float | None
    test: TestResult


def estimate(formula: Formula, seeds: Inputs) -> float:
    """Mean over seeds of the formula of the summed statistics."""
    with np.errstate(all="ignore"):
        return float(np.mean([formula(*stats.sum(0)) for stats in seeds]))


def replicates(formula: Formula, seeds: Inputs) -> Array | None:
    """[resamples] the estimate on resampled documents; None for too few documents or where it is not finite."""
    documents = len(seeds[0])
    if documents < MINIMUM_DOCUMENTS:
        return None
    drawn = weights(documents)
    values = mean_of_replicates(formula, list(np.stack([(drawn @ stats).T for stats in seeds], axis=1)))
    return values if np.isfinite(values).all() else None


def mean_of_replicates(formula: Formula, sums: Sequence[Array]) -> Array:
    """[..., resamples] the mean over seeds of the formula of sums [inputs][seeds, ..., resamples]."""
    with np.errstate(all="ignore"):
        values: Array = np.broadcast_to(formula(*sums), sums[0].shape).mean(0)
    return values


def interval(values: Array | None, documents: int, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Expanded percentile interval of bootstrap replicates."""
    if values is None:
        return None, None
    low, high = np.quantile(values, expanded_levels(documents, level))
    return float(low), float(high)


def difference(formula: Formula, a: Inputs, b: Inputs, units: str = "documents") -> Difference:
    """A minus B with a 95 % interval and a two-sided p-value; both measured on the same units."""
    resampled_a, resampled_b = replicates(formula, a), replicates(formula, b)
    both = None if resampled_a is None or resampled_b is None else resampled_a - resampled_b
    low, high = interval(both, len(a[0]))
    value = estimate(formula, a) - estimate(formula, b)
    return Difference(value, low, high, exchange_test(formula, mean_over_seeds(a), mean_over_seeds(b), units))


def mean_over_seeds(seeds: Inputs) -> Array:
    """[documents, inputs]: the statistics of the average seed, to which linearised tests are indifferent."""
    return seeds[0] if len(seeds) == 1 else np.mean(seeds, axis=0)


def exchange_test(formula: Formula, a: Array, b: Array, units: str = "documents") -> TestResult:
    """Two-sided paired test that the formula agrees on A and B, over statistics [units, inputs]."""
    return exchange_tests(formula, [column[None] for column in a.T], list(b.T), units)[0]


def exchange_tests(
    formula: Formula, a: Sequence[Array], b: Sequence[Array], units: str = "documents"
) -> list[TestResult]:
    """`exchange_test` of each of many A [inputs][tests, units] against one B [inputs][units], at the cost of a few operations."""
    tests, n = a[0].shape
    if n < MINIMUM_UNITS:
        return [TestResult(None, f"not testable with n = {counted(n, units)}")] * tests
    # 2^n exchanges cannot all be tried; the t-test of the shares stands for them at the cost of one evaluation.
    shares, scale = _shares(formula, a, b)
    finite: list[bool] = np.asarray(np.isfinite(shares).all(-1)).tolist()
    undefined = TestResult(None, f"not testable: the formula is not finite when {units} are exchanged")
    with np.errstate(all="ignore"):
        p_values = _two_sided(shares, scale).tolist()
    return [TestResult(p) if known else undefined for p, known in zip(p_values, finite, strict=True)]


def counted(n: int, units: str) -> str:
    """`1 document`, `64 latents`."""
    return f"{n:,} {units.removesuffix('s') if n == 1 else units}"


def swap_shares(formula: Formula, a: Array, b: Array) -> tuple[Array, float]:
    """[documents] each document's share of A minus B, and the size of the numbers themselves.

    At the pooled sums P = (ΣA + ΣB) / 2, which the null hypothesis says both sides have, document i moves the difference by
    f(P + (a_i − b_i)/2) − f(P − (a_i − b_i)/2); exchanging its statistics turns the sign. For a formula that is linear in the
    sums the shares add up to f(ΣA) − f(ΣB) exactly.
    """
    shares, scale = _shares(formula, list(a.T), list(b.T))
    return shares, float(scale)


def _shares(formula: Formula, a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array]:
    """[..., documents] shares and [...] sizes, from statistics [inputs][..., documents]."""
    halves = [(ours - theirs) / 2 for ours, theirs in zip(a, b, strict=True)]
    pooled = [(ours + theirs).sum(-1, keepdims=True) / 2 for ours, theirs in zip(a, b, strict=True)]
    with np.errstate(all="ignore"):
        with_a = formula(*(total + half for total, half in zip(pooled, halves, strict=True)))
        with_b = formula(*(total - half for total, half in zip(pooled, halves, strict=True)))
        # A formula that ignores its inputs (a constant) gives one number for all.
        shares = np.broadcast_to(with_a - with_b, halves[0].shape)
        scale = np.broadcast_to(np.abs(formula(*pooled)), pooled[0].shape)[..., 0]
    return shares, scale


def _two_sided(shares: Array, scale: Array) -> Array:
    """p of t-tests that the shares [..., n] have mean zero, with the two cases that would divide by rounding."""
    from scipy.special import stdtr

    n = shares.shape[-1]
    # Of 2^n exchanges at least the observed one and its mirror image are as extreme.
    floor = 2.0 ** (1 - n)
    mean, spread = shares.mean(-1), shares.std(-1, ddof=1)
    p_values = np.maximum(2 * stdtr(n - 1, -np.abs(mean / spread * n**0.5)), floor)
    # Every document says exactly the same (a planted offset): t would be infinite.
    p_values = np.where(spread <= ROUNDING * np.abs(mean), floor, p_values)
    # The same SAE measured twice differs in the last bits: that is no finding, however regular those bits are.
    return np.where(np.abs(shares).sum(-1) <= ROUNDING * scale, 1.0, p_values)


def seed_test(differences: Sequence[float]) -> TestResult:
    """Exact two-sided sign-flip test over differences paired by seed: the share of sign patterns whose sum is as far from zero.

    A handful of seeds is too few to assume a distribution; the exact test needs only that signs are arbitrary under the null.
    """
    n = len(differences)
    if n < MINIMUM_UNITS:
        return TestResult(None, f"not testable with n = {n} seed{'s' * (n != 1)}")
    values = np.asarray(differences, dtype=np.float64)
    flips = _signs(n) @ values
    # Patterns whose sum equals the observed one count, and must although summation order differs in the last bits.
    reached = np.abs(flips) >= abs(values.sum()) - ROUNDING * np.abs(values).sum()
    return TestResult(float(reached.mean()))


def _signs(n: int) -> Array:
    """All sign patterns, or for many seeds 2^16 random ones of which the first is the observed."""
    if n <= MAXIMUM_EXACT:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    signs = np.random.default_rng(n).choice((1.0, -1.0), size=(1 << MAXIMUM_EXACT, n))
    signs[0] = 1.0  # with the observed pattern among them p is never 0 and the test keeps its size
    return signs


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm-adjusted p-values (Holm 1979), in the order given: the i-th smallest of m times m − i + 1, never falling.

    It bounds the chance of any false claim among them whatever the dependence of the tests, which share documents here.

    `family` is the number of hypotheses where only some are at hand: comparing everything with the observed best uses
    the family of all pairs, because which row is best was decided by the same data. Unknown ones can only lie later
    in the true order, so the result errs on the side of calling ties.
    """
    size = len(p_values) if family is None else family
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, p_values[index] * (size - rank)))
        adjusted[index] = running
    return adjusted
