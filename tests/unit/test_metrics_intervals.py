"""The document bootstrap covers the truth as often as it says, also with few documents and dependent tokens."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from latentbench.statistics.intervals import MINIMUM_DOCUMENTS, document_interval, expanded_levels, weights

REPETITIONS = 2000


def ratio(numerator, denominator):
    return numerator / denominator


def clustered(documents: int, repetitions: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Per-document sums [documents, repetitions] of a skewed token quantity with true mean 1, and token counts.

    Half of a token's variance is its document's, documents differ threefold in length, and long documents are no
    different from short ones.
    """
    shape = (documents, repetitions)
    lengths = generator.integers(20, 61, size=shape).astype(np.float64)
    level = generator.gamma(4.0, 1 / 4, size=shape)  # the document's mean: variance 1/4
    total = generator.gamma(4.0 * lengths, level / 4)  # its tokens vary by a quarter of level² around it
    return total, lengths


@pytest.mark.parametrize("documents", [30, 60, 200])
def test_coverage_of_a_ratio_over_clustered_tokens(documents: int) -> None:
    generator = np.random.default_rng(7)
    totals, lengths = clustered(documents, REPETITIONS, generator)
    drawn = weights(documents)
    resampled = (drawn @ totals) / (drawn @ lengths)
    low, high = np.quantile(resampled, expanded_levels(documents, 0.95), axis=0)
    covered = float(np.mean((low <= 1) & (high >= 1)))
    assert 0.93 <= covered <= 0.97, covered
    # Ignoring the clusters, a token-level interval would miss most of the time.
    spread = np.sqrt(np.var(totals / lengths, axis=0) / documents / lengths.mean())
    naive = float(np.mean(np.abs(totals.sum(0) / lengths.sum(0) - 1) < 1.96 * spread))
    assert naive < 0.6


def test_the_vectorised_simulation_is_what_the_function_computes() -> None:
    totals, lengths = clustered(40, 3, np.random.default_rng(0))
    drawn = weights(40)
    for repetition in range(3):
        interval = document_interval(ratio, np.stack([totals[:, repetition], lengths[:, repetition]], axis=1))
        values = (drawn @ totals[:, repetition]) / (drawn @ lengths[:, repetition])
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx(np.quantile(values, expanded_levels(40, 0.95)), rel=1e-12)


def test_expanded_levels_undo_the_bootstraps_small_sample_bias() -> None:
    """On the mean of normal data the interval is nearly Student's."""
    data = np.random.default_rng(1).normal(size=(12, 1))
    interval = document_interval(lambda x: x / 12, data)
    student = stats.t.interval(0.95, 11, loc=data.mean(), scale=stats.sem(data[:, 0]))
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(student[1] - student[0], rel=0.06)
    low, high = expanded_levels(12, 0.95)
    assert low < 0.025 < 0.975 < high
    assert low + high == pytest.approx(1)
    assert expanded_levels(100_000, 0.95)[0] == pytest.approx(0.025, rel=1e-3)


def test_weights_are_seeded_whole_resamples() -> None:
    assert weights(17).sum(1).tolist() == [17] * 2000
    assert (weights(17) == weights(17, 0)).all()
    assert (weights(17) != weights(17, 1)).any()
    with pytest.raises(ValueError, match="read-only"):
        weights(17)[0, 0] = 3


def test_no_interval_is_better_than_a_wrong_one() -> None:
    rows = np.ones((MINIMUM_DOCUMENTS, 2))
    assert document_interval(ratio, rows[1:]) is None
    mostly_zero = np.zeros((30, 2))
    mostly_zero[0] = 1  # many resamples are 0/0
    assert document_interval(ratio, mostly_zero) is None
    constant = document_interval(ratio, rows)
    assert constant is not None
    assert constant.low == constant.high == 1
