"""KronSAE's toy experiment: its score, its matching and its data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentbench.bench.correlation import (
    ACTIVE,
    FEATURES,
    VARIANTS,
    Correlation,
    Scores,
    block_covariance,
    features,
    matched,
    run,
    rv_coefficient,
    without_diagonal,
)
from latentbench.cli.diagnostics import correlation


def test_rv_is_one_for_a_multiple_and_zero_for_what_shares_nothing() -> None:
    a = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert rv_coefficient(a, 5 * a) == pytest.approx(1)
    assert rv_coefficient(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == 0


def test_the_diagonal_alone_makes_a_score_that_is_nothing_without_it() -> None:
    truth = block_covariance(torch.Generator().manual_seed(0)).numpy()
    identity = np.eye(FEATURES)
    assert rv_coefficient(truth, identity) == pytest.approx(FEATURES**0.5 / np.sqrt((truth**2).sum()))
    assert rv_coefficient(without_diagonal(truth), without_diagonal(identity)) == 0
    assert rv_coefficient(without_diagonal(truth), without_diagonal(3 * truth)) == pytest.approx(1)


@pytest.mark.usefixtures("one_thread")
def test_every_sae_stands_beside_itself_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """After no steps the two are one; after some, the row before training is what it was."""
    monkeypatch.setattr("latentbench.bench.correlation.AE_STEPS", 5)
    chosen = dict(list(VARIANTS.items())[:2])
    monkeypatch.setattr("latentbench.bench.correlation.VARIANTS", chosen)
    at_once, later = ({item.model: item for item in run(1, steps=steps)} for steps in (0, 20))
    assert list(later) == ["autoencoder", "identity", *(f"{n}{t}" for n in chosen for t in (", untrained", ""))]
    for name in chosen:
        before = at_once[f"{name}, untrained"]
        assert (before.rv, before.off_diagonal) == (at_once[name].rv, at_once[name].off_diagonal)
        assert later[name].rv != before.rv
    first = next(iter(chosen))
    assert later[f"{first}, untrained"] == at_once[f"{first}, untrained"]


def test_matching_undoes_a_permutation_of_distinct_blocks() -> None:
    sizes, values = (2, 3, 4, 5), (0.9, 0.8, 0.7, 0.6)
    truth = np.eye(sum(sizes))
    for size, value, start in zip(sizes, values, np.cumsum((0, *sizes[:-1])), strict=True):
        truth[start : start + size, start : start + size] = value
    np.fill_diagonal(truth, 1)
    order = np.random.default_rng(0).permutation(len(truth))
    shuffled = truth[np.ix_(order, order)]
    assert rv_coefficient(truth, matched(truth, shuffled)) > rv_coefficient(truth, shuffled)


def test_a_covariance_is_positive_definite_and_the_features_follow_it() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = block_covariance(generator)
    assert float(torch.linalg.eigvalsh(truth).min()) > 0
    assert torch.equal(truth, truth.T)
    drawn = features(torch.eye(FEATURES), generator)
    assert int((drawn != 0).sum(1).max()) <= ACTIVE


def test_the_interval_of_the_mean_is_students() -> None:
    """Against the table's t(0.975, 7) = 2.365; it holds the mean of normal scores 95 % of the time."""
    low, high = Scores((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)).interval or (0, 0)
    assert (low + high) / 2 == pytest.approx(4.5)
    assert (high - low) / 2 == pytest.approx(2.365 * 6**0.5 / 8**0.5, rel=1e-3)
    assert Scores((1.0,)).interval is None
    drawn = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
    found = [Scores(tuple(row)).interval or (0, 0) for row in drawn]
    assert np.mean([low <= 3.0 <= high for low, high in found]) == pytest.approx(0.95, abs=0.015)


def test_both_scores_are_printed_for_every_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [Correlation("TopK", Scores((0.2, 0.4)), Scores((0.1, 0.1)))]
    one = [Correlation("identity", Scores((0.43,)), Scores((0.0,)))]
    for made, said in (
        (several, ("RV 0.300 (0.141; -0.971 to 1.571)", "off-diagonal 0.100 (")),
        (one, ("RV 0.430", "off-diagonal 0.000")),
    ):
        monkeypatch.setattr("latentbench.bench.correlation.run", lambda covariances, seed, made=made: made)
        correlation(covariances=len(made[0].rv.values), seed=0, as_json=False)
        out = capsys.readouterr().out
        assert all(words in out for words in said)
