"""Unpaired tests and intervals: size, coverage and power by simulation with planted latents, and edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from latentbench.statistics.paired import TestResult
from latentbench.statistics.unpaired import unpaired_difference, unpaired_interval, unpaired_test

Array = np.ndarray


def mean(total: Array, n: Array) -> Array:
    found: Array = total / n
    return found


def latents(rng: np.random.Generator, n: int, shape: tuple[float, float]) -> Array:
    """[n, 2] scores in [0, 1] of n latents; their mean is 0.7 whatever the spread."""
    return np.stack([rng.beta(*shape, n), np.ones(n)], 1)


def weighted(rng: np.random.Generator, n: int, spread: float) -> Array:
    """[n, 2] hits and trials of latents with unequal numbers of trials; the ratio of expectations is 0.6."""
    trials = np.round(rng.lognormal(2.5, 0.5, n)) + 2
    hits = trials * np.clip(0.6 + spread * rng.normal(size=n), 0, None)
    return np.stack([hits, trials], 1)


WIDE, NARROW = (1.4, 0.6), (7.0, 3.0)


@pytest.mark.parametrize(("ours", "theirs"), [(64, 64), (64, 24), (24, 200)])
@pytest.mark.parametrize("shapes", [(WIDE, WIDE), (WIDE, NARROW), (NARROW, WIDE)], ids=["equal", "wide", "narrow"])
def test_false_positives_stay_at_six_percent_or_below(ours: int, theirs: int, shapes: tuple) -> None:
    rng, trials = np.random.default_rng([21, ours, theirs]), 4000
    pairs = (([latents(rng, ours, shapes[0])], [latents(rng, theirs, shapes[1])]) for _ in range(trials))
    found = [unpaired_test(mean, a, b, "latents").p for a, b in pairs]
    rate = np.mean([p is not None and p <= 0.05 for p in found])
    assert 0.03 <= rate <= 0.06


def test_size_of_a_ratio_over_latents_with_unequal_trials() -> None:
    rng, trials = np.random.default_rng(22), 3000
    found = [
        unpaired_test(mean, [weighted(rng, 64, 0.2)], [weighted(rng, 48, 0.1)], "latents").p for _ in range(trials)
    ]
    assert 0.03 <= np.mean([p is not None and p <= 0.05 for p in found]) <= 0.06


def test_size_over_several_seeds() -> None:
    rng, trials = np.random.default_rng(23), 2000
    sides = ([[latents(rng, 40, shape) for _ in range(3)] for shape in (WIDE, NARROW)] for _ in range(trials))
    found = [unpaired_test(mean, a, b, "latents").p for a, b in sides]
    assert 0.03 <= np.mean([p is not None and p <= 0.05 for p in found]) <= 0.06


@pytest.mark.parametrize(("ours", "theirs"), [(64, 64), (24, 120)])
def test_interval_of_a_difference_covers_in_95_percent(ours: int, theirs: int) -> None:
    rng, trials, hits = np.random.default_rng([24, ours]), 800, 0
    for _ in range(trials):
        found = unpaired_difference(mean, [latents(rng, ours, WIDE)], [latents(rng, theirs, NARROW)], "latents")
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_of_a_row_covers_in_95_percent(seeds: int) -> None:
    rng, trials, hits = np.random.default_rng([25, seeds]), 800, 0
    for _ in range(trials):
        low, high = unpaired_interval(mean, [latents(rng, 30 + 20 * i, (3.5, 1.5)) for i in range(seeds)])
        assert low is not None
        assert high is not None
        hits += low <= 0.7 <= high
    assert 0.93 <= hits / trials <= 0.97


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(26)
    found = [
        unpaired_test(mean, [latents(rng, 64, (8, 2))], [latents(rng, 64, NARROW)], "latents").p for _ in range(200)
    ]
    assert np.mean([p is not None and p <= 0.05 for p in found]) > 0.9


def test_of_means_it_is_welchs_test() -> None:
    rng = np.random.default_rng(27)
    for n in (8, 40):
        a, b = latents(rng, n, WIDE), latents(rng, 2 * n, NARROW)
        expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).pvalue
        assert unpaired_test(mean, [a], [b], "latents").p == pytest.approx(expected, rel=1e-9)


def test_the_order_of_units_means_nothing() -> None:
    """The same latents in another order are no other evidence; a paired test would say so."""
    rng = np.random.default_rng(28)
    a, b = latents(rng, 50, WIDE), latents(rng, 50, NARROW)
    shuffled = unpaired_test(mean, [a[rng.permutation(50)]], [b], "latents").p
    assert shuffled == pytest.approx(unpaired_test(mean, [a], [b], "latents").p, rel=1e-9)


def test_exchanging_the_sides_changes_only_the_sign() -> None:
    rng = np.random.default_rng(29)
    a, b = [latents(rng, 30, WIDE)], [latents(rng, 60, NARROW)]
    forth, back = unpaired_difference(mean, a, b, "latents"), unpaired_difference(mean, b, a, "latents")
    assert forth.value == -back.value
    assert forth.test.p == pytest.approx(back.test.p)
    assert forth.low is not None
    assert back.high is not None
    assert forth.low == pytest.approx(-back.high, abs=0.02)


def test_same_numbers_of_units_are_resampled_apart() -> None:
    """With shared draws the interval of a sample's difference from itself would collapse to zero."""
    a = latents(np.random.default_rng(30), 64, WIDE)
    found = unpaired_difference(mean, [a], [a.copy()], "latents")
    assert found.test.p == 1.0
    assert found.low is not None
    assert found.high is not None
    half = (found.high - found.low) / 2
    expected = stats.t.ppf(0.975, 126) * math.sqrt(2 * a[:, 0].var(ddof=1) / 64)
    assert half == pytest.approx(expected, rel=0.1)


def test_too_few_units_are_not_testable() -> None:
    rng = np.random.default_rng(31)
    few, many = [latents(rng, 5, WIDE)], [latents(rng, 60, WIDE)]
    assert unpaired_test(mean, few, many, "latents") == TestResult(None, "not testable with n = 5 latents")
    assert unpaired_test(mean, many, [latents(rng, 1, WIDE)], "latents").reason == "not testable with n = 1 latent"
    found = unpaired_difference(mean, few, many, "latents")
    assert (found.low, found.high) == (None, None)


def test_without_any_spread_the_floor_of_permutations_holds() -> None:
    ones, zeros = np.ones((6, 2)), np.stack([np.zeros(6), np.ones(6)], 1)
    assert unpaired_test(mean, [ones], [zeros], "latents").p == 2 / math.comb(12, 6)
    assert unpaired_test(mean, [ones], [ones], "latents").p == 1.0


def test_a_formula_that_fails_is_not_testable() -> None:
    zeros = np.zeros((20, 2))
    found = unpaired_test(mean, [zeros], [zeros], "latents")
    assert found.p is None
    assert "not finite" in str(found.reason)
