"""Size, power and edge cases of the tests; sizes by simulation with planted documents of unequal length."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from latentbench.statistics.paired import (
    TestResult,
    difference,
    estimate,
    exchange_test,
    holm,
    interval,
    replicates,
    seed_test,
    swap_shares,
)

Array = np.ndarray


def explained(lost: Array, whole: Array) -> Array:
    kept: Array = 1 - lost / whole
    return kept


def drawn(rng: np.random.Generator, n: int, spreads: tuple[float, float], shift: float = 0.0) -> tuple[Array, Array]:
    """Two SAEs on the same n documents of unequal length and difficulty, equally good unless shifted."""
    variance = np.round(rng.lognormal(4.5, 0.7, n)) * rng.gamma(8, 1 / 8, n)
    difficulty = 0.2 * variance * rng.lognormal(0, 0.5, n)
    lost = [difficulty * np.exp(s * rng.normal(size=n) - s * s / 2) for s in spreads]
    return np.stack([lost[0], variance], 1), np.stack([lost[1] * (1 + shift), variance], 1)


@pytest.mark.parametrize("documents", [30, 100, 300])
@pytest.mark.parametrize("spreads", [(0.2, 0.2), (0.3, 0.15)], ids=["exchangeable", "unequal spreads"])
def test_false_positives_stay_at_six_percent_or_below(documents: int, spreads: tuple[float, float]) -> None:
    rng = np.random.default_rng([7, documents])
    trials = 4000
    found = [exchange_test(explained, *drawn(rng, documents, spreads)).p for _ in range(trials)]
    rate = np.mean([p is not None and p <= 0.05 for p in found])
    assert rate <= 0.06
    assert rate >= 0.03, "a test that hardly ever rejects is of no use"


@pytest.mark.parametrize("documents", [40, 200])
def test_interval_of_a_difference_covers_in_95_percent(documents: int) -> None:
    rng, trials = np.random.default_rng([8, documents]), 800
    hits = 0
    for _ in range(trials):
        a, b = drawn(rng, documents, (0.2, 0.2))
        found = difference(explained, [a], [b])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / trials <= 0.97


def test_interval_of_a_mean_over_seeds_covers_in_95_percent() -> None:
    rng, trials, n, true = np.random.default_rng(9), 600, 120, 0.2
    hits = 0
    for _ in range(trials):
        tokens = rng.integers(20, 200, n).astype(float)
        quality = true + 0.1 * rng.normal(size=n)
        seeds = [np.stack([tokens * (quality + 0.02 * rng.normal(size=n)), tokens], 1) for _ in range(3)]
        low, high = interval(replicates(lambda x, t: x / t, seeds), n)
        assert low is not None
        assert high is not None
        hits += low <= true <= high
    assert 0.93 <= hits / trials <= 0.97


def test_comparing_all_rows_with_the_best_finds_no_false_winner() -> None:
    rng, trials, rows = np.random.default_rng(10), 500, 6
    false = 0
    for _ in range(trials):
        variance = rng.lognormal(4, 0.5, 60)
        planted = [np.stack([0.2 * variance * rng.lognormal(0, 0.2, 60), variance], 1) for _ in range(rows)]
        best, *others = sorted(planted, key=lambda stats: -estimate(explained, [stats]))
        p_values = [exchange_test(explained, best, other).p or 0.0 for other in others]
        false += min(holm(p_values, family=rows * (rows - 1) // 2)) <= 0.05
    assert false / trials <= 0.06


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(11)
    found = [exchange_test(explained, *drawn(rng, 100, (0.2, 0.2), shift=0.2)).p for _ in range(200)]
    assert np.mean([p is not None and p <= 0.05 for p in found]) > 0.9


def test_p_value_agrees_with_the_exact_exchange_test() -> None:
    rng, whole = np.random.default_rng(12), np.full(12, 10.0)
    for _ in range(5):
        a, b = (np.stack([2 + 0.2 * rng.normal(size=12), whole], 1) for _ in range(2))
        shares, _ = swap_shares(explained, a, b)
        sums = [abs(np.dot(signs, shares)) for signs in itertools.product((1, -1), repeat=12)]
        exact = np.mean([total >= abs(shares.sum()) - 1e-15 for total in sums])
        found = exchange_test(explained, a, b).p
        assert found is not None
        assert abs(found - exact) < 0.03


def test_shares_add_up_to_the_difference() -> None:
    a, b = drawn(np.random.default_rng(13), 50, (0.2, 0.2))
    shares, _ = swap_shares(explained, a, b)
    assert math.isclose(shares.sum(), estimate(explained, [a]) - estimate(explained, [b]), rel_tol=1e-9)


def test_exchanging_the_sides_changes_only_the_sign() -> None:
    a, b = drawn(np.random.default_rng(14), 40, (0.2, 0.3))
    forth, back = difference(explained, [a], [b]), difference(explained, [b], [a])
    assert forth.value == -back.value
    assert forth.test == back.test
    assert forth.low is not None
    assert back.high is not None
    assert math.isclose(forth.low, -back.high, rel_tol=1e-9)


def test_the_same_numbers_are_a_tie() -> None:
    a, _ = drawn(np.random.default_rng(15), 40, (0.2, 0.2))
    assert exchange_test(explained, a, a.copy()).p == 1.0


def test_rounding_is_no_finding() -> None:
    a, _ = drawn(np.random.default_rng(16), 40, (0.2, 0.2))
    b = a * np.array([1 + 1e-15, 1.0])
    assert exchange_test(explained, a, b).p == 1.0


@pytest.mark.parametrize("documents", [1, 2, 5])
def test_too_few_documents_are_not_testable(documents: int) -> None:
    a, b = drawn(np.random.default_rng(17), documents, (0.2, 0.2))
    plural = "" if documents == 1 else "s"
    assert exchange_test(explained, a, b) == TestResult(None, f"not testable with n = {documents} document{plural}")


def test_p_is_never_below_what_the_exact_test_can_reach() -> None:
    whole = np.full(8, 10.0)
    a, b = np.stack([whole * 0.2, whole], 1), np.stack([whole * 0.1, whole], 1)
    assert exchange_test(explained, a, b).p == 2 / 2**8


def test_a_formula_that_fails_is_not_testable() -> None:
    zeros = np.zeros((20, 2))
    found = exchange_test(explained, zeros, zeros)
    assert found.p is None
    assert found.reason is not None
    assert "not finite" in found.reason


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_few_seeds_are_not_testable(seeds: int) -> None:
    plural = "" if seeds == 1 else "s"
    assert seed_test([0.1] * seeds) == TestResult(None, f"not testable with n = {seeds} seed{plural}")


def test_seed_test_is_exact() -> None:
    assert seed_test([0.3, 0.1, 0.2, 0.4, 0.1, 0.2]).p == 2 / 2**6
    # One reversed sign: the patterns that reach 0.9 of 1.3 are the observed one, the full one, and their negatives …
    values = [0.3, 0.1, 0.2, 0.4, -0.2, 0.1]
    reached = [abs(np.dot(s, values)) >= abs(sum(values)) - 1e-12 for s in itertools.product((1, -1), repeat=6)]
    assert seed_test(values).p == np.mean(reached)


def test_many_seeds_are_sampled_and_still_significant() -> None:
    p = seed_test([0.1 + 0.001 * i for i in range(24)]).p
    assert p is not None
    assert 0 < p < 1e-3


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_over_a_larger_family() -> None:
    assert holm([0.01, 0.02], family=3) == pytest.approx([0.03, 0.04])
    assert holm([0.01], family=10) == pytest.approx([0.1])
