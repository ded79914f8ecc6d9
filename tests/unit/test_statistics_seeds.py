"""A row's seeds taken together give what each number gives alone; numbers do not depend on which others were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentbench.statistics import resampling
from latentbench.statistics.intervals import RESAMPLES, expanded_levels, quantiles, weights
from latentbench.statistics.paired import exchange_test, exchange_tests, interval, mean_of_replicates, replicates
from latentbench.statistics.resampling import drawn_sums
from latentbench.statistics.seeds import _BLOCK, SeedStatistics
from latentbench.statistics.unpaired import (
    equal_estimates,
    equal_intervals,
    estimated,
    unpaired_interval,
    unpaired_test,
    welch_test,
)

Array = np.ndarray


def ratio(total: Array, n: Array) -> Array:
    found: Array = total / n
    return found


def constant(total: Array, n: Array) -> Array:
    return np.asarray(2.0)


def fragile(total: Array, n: Array) -> Array:
    """Not finite on some resamples."""
    return np.log(total - 0.9 * n)


def recovered(zero: Array, sae: Array, clean: Array) -> Array:
    found: Array = (zero - sae) / (zero - clean)
    return found


NAMES = {ratio: ("a/x", "a/n"), constant: ("a/x", "a/n"), fragile: ("a/x", "a/n"), recovered: ("a/z", "a/x", "a/n")}


def seeds(rng: np.random.Generator, n: int, count: int = 3) -> list[dict[str, Array]]:
    """Statistics of several seeds over n units, one of them alike in all, beside others of other lengths."""
    alike = 1 + rng.gamma(20, 0.1, n)
    return [
        {
            "a/x": rng.gamma(2, 1, n),
            "a/n": alike,
            "a/z": 20 + rng.gamma(20, 1, n),
            "b/x": rng.normal(size=7),
            **{f"c/{i}": rng.normal(size=n) for i in range(_BLOCK)},
        }
        for _ in range(count)
    ]


def one_by_one(own: list[dict[str, Array]], names: tuple[str, ...]) -> list[Array]:
    return [np.stack([stats[name] for name in names], axis=1) for stats in own]


def one_column(statistics: Array) -> list[Array]:
    """[names][seeds, ...] of statistics [seeds, names, ...]."""
    return [*statistics.transpose(1, 0, 2)]


@pytest.mark.parametrize("formula", list(NAMES))
@pytest.mark.parametrize("n", [10, 60, 500])
@pytest.mark.parametrize("count", [1, 3])
def test_intervals_of_seeds_together_are_those_of_one_column_at_a_time(formula, n: int, count: int) -> None:
    own, names = seeds(np.random.default_rng([1, n, count]), n, count), NAMES[formula]
    row, inputs = SeedStatistics(own), one_by_one(own, names)
    assert row.units(names) == n
    paired, alone = (
        mean_of_replicates(formula, one_column(row.sums(names, apart=False))),
        replicates(formula, inputs),
    )
    assert np.isfinite(paired).all() == (alone is not None)
    if alone is not None:
        np.testing.assert_allclose(paired, alone, rtol=1e-12)
        # What the bootstrap is: the formula of sums over documents that are drawn again.
        first = np.mean([formula(*(weights(n)[0] @ stats)) for stats in inputs])
        assert paired[0] == pytest.approx(first, rel=1e-12)
        together = quantiles(np.stack([paired, alone]), expanded_levels(n, 0.95))[:, 1].tolist()
        assert together == list(interval(alone, n))
    stats, drawn = row.stats(names)[:, :, None], row.sums(names, apart=True)[:, :, None]
    (apart,) = equal_intervals(formula, [*stats.transpose(1, 0, 2, 3)], [*drawn.transpose(1, 0, 2, 3)])
    expected = unpaired_interval(formula, inputs)
    assert apart == (expected if None in expected else pytest.approx(expected, rel=1e-12, abs=1e-12))


@pytest.mark.parametrize("formula", list(NAMES))
def test_tests_of_rows_together_are_those_of_one_pair_at_a_time(formula) -> None:
    rng, names = np.random.default_rng(2), NAMES[formula]
    rows, best = [SeedStatistics(seeds(rng, 40)) for _ in range(9)], SeedStatistics(seeds(rng, 40))
    inputs = [np.stack(column) for column in zip(*(row.means(names) for row in rows), strict=True)]
    with np.errstate(all="ignore"):
        together = exchange_tests(formula, inputs, best.means(names))
        leader = np.stack(best.means(names), axis=1)
        alone = [exchange_test(formula, np.stack(row.means(names), axis=1), leader) for row in rows]
        assert together == alone, "to the last bit: what is kept of one table stands in the next"
        for row in rows:
            ours, theirs = one_by_one(list(row.seeds), names), one_by_one(list(best.seeds), names)
            found = welch_test(
                *(
                    equal_estimates(formula, [*side.stats(names)[:, :, None].transpose(1, 0, 2, 3)])[0]
                    for side in (row, best)
                ),
                "latents",
            )
            expected = unpaired_test(formula, ours, theirs, "latents")
            assert found.reason == expected.reason
            assert found.p == (None if expected.p is None else pytest.approx(expected.p, rel=1e-9))


def test_seeds_of_other_sizes_are_estimated_one_by_one() -> None:
    rng = np.random.default_rng(3)
    ragged = [np.stack([rng.gamma(2, 1, n), np.ones(n)], axis=1) for n in (12, 40)]
    found = estimated(ratio, ragged)
    assert found.units == (12, 40)
    assert found.variances == pytest.approx([stats[:, 0].var(ddof=1) / len(stats) for stats in ragged])
    row = SeedStatistics([{"x": stats[:, 0]} for stats in ragged])
    assert not row.alike
    assert row.units(["x"]) is None


def test_a_number_has_the_same_bits_whichever_others_are_asked_for() -> None:
    own, names = seeds(np.random.default_rng(4), 60), ("a/x", "a/n")
    first = SeedStatistics(own).sums(names, apart=False)
    row = SeedStatistics([dict(reversed(stats.items())) for stats in own])
    row.sums([f"c/{i}" for i in range(_BLOCK)], apart=False)
    row.sums(names, apart=True)
    row.forget()
    assert (first == row.sums(names, apart=False)).all()


@pytest.mark.parametrize("n", [1, 2, 64, 700])
def test_draws_of_units_are_whole_resamples_whatever_the_pieces(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = np.stack([np.ones(n), np.arange(n, dtype=float)])
    whole = drawn_sums(stats, 5)
    generator = np.random.default_rng([5, n])
    draws = [np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(RESAMPLES)]
    np.testing.assert_allclose(whole, (np.stack(draws) @ stats.T).T, rtol=1e-12)
    assert (whole[0] == n).all()
    resampling._DRAWN.__init__(0)  # type: ignore[misc]
    monkeypatch.setattr(resampling, "_PIECE", 3 * n)
    np.testing.assert_allclose(drawn_sums(stats, 5), whole, rtol=1e-12)
    resampling._DRAWN.__init__(64 << 20)  # type: ignore[misc]


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.009, 0.991), (0.025, 0.975), (1 / 3, 0.5)])
def test_quantiles_are_those_of_numpy_to_the_last_bit(levels: tuple[float, float]) -> None:
    values = np.random.default_rng(6).normal(size=(20, 2000))
    assert (quantiles(values, levels) == np.quantile(values, levels, axis=-1)).all()
    assert math.isnan(quantiles(np.full(3, np.nan), (0.5,))[0])
