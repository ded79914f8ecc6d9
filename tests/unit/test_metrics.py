"""Metrics: formulas on numbers worked out by hand, nulls with reasons, budgets, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from latentbench.metrics.base import SHARED, Metric
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import metric_values
from latentbench.reconstruction.cross_entropy import CrossEntropy
from latentbench.reconstruction.error_metrics import MSE, Cosine, ExplainedVariance, NormRatio
from latentbench.reconstruction.sparsity_and_cost import L0, DeadFraction

ALL = [CrossEntropy, ExplainedVariance, L0, DeadFraction, MSE, Cosine, NormRatio]


def by_hand() -> dict[str, np.ndarray]:
    """Three documents of 2, 3 and 5 tokens in 4 dimensions; sums: 10 tokens, 13 predictions."""
    return {
        name: np.array(values, dtype=np.float64)
        for name, values in {
            "tokens": [2, 3, 5], "elements": [8, 12, 20], "predictions": [3, 4, 6],
            "squared_norm": [100, 100, 200], "total_variance": [30, 30, 40],
            "squared_error": [5, 10, 5], "residual_variance": [4, 8, 3], "token_ratio": [1.5, 2.5, 3.5],
            "cosine": [1.8, 2.7, 4.5], "norm_ratio": [1.6, 2.7, 4.7], "l0": [8, 12, 20],
            "ce_clean": [3, 4, 6], "ce_sae": [6, 7, 13], "ce_zero": [30, 40, 60], "ce_mean": [15, 20, 30],
            "kl_sae": [3, 3, 7], "kl_zero": [20, 45, 65], "kl_mean": [9, 9, 9],
            "squared_error@8": [10, 10, 20], "l0@8": [16, 24, 40],
        }.items()
    }  # fmt: skip


def values(*metrics: Metric, statistics=None, firing=None) -> dict[str, MetricValue]:
    found = metric_values(metrics, {"d": statistics or by_hand()}, {"d": firing or {}})
    return {v.id + (f"@{v.params['budget']}" if "budget" in v.params else ""): v for v in found}


def numbers(*metrics: Metric) -> dict[str, float | None]:
    return {name: v.value for name, v in values(*metrics).items()}


def test_every_definition_of_explained_variance() -> None:
    everything = ExplainedVariance(estimators=["centred", "residual_variance", "token_ratio", "uncentred"])
    assert numbers(everything) == pytest.approx(
        {
            "explained_variance.centred": 1 - 20 / 100,
            "explained_variance.residual_variance": 1 - 15 / 100,
            "explained_variance.token_ratio": 7.5 / 10,
            "explained_variance.uncentred": 1 - 20 / 400,
        }
    )
    assert set(numbers(ExplainedVariance())) == {"explained_variance.centred"}


def test_cross_entropies() -> None:
    assert numbers(CrossEntropy()) == pytest.approx(
        {
            "cross_entropy.clean": 1,
            "cross_entropy.sae": 2,
            "cross_entropy.zero": 10,
            "cross_entropy.mean": 5,
            "cross_entropy.increase": 1,
            "cross_entropy.loss_recovered_zero": 8 / 9,
            "cross_entropy.loss_recovered_mean": 3 / 4,
            "cross_entropy.kl": 1,
            "cross_entropy.kl_recovered": 9 / 10,
        }
    )


def test_sparsity_and_reconstruction() -> None:
    assert numbers(L0(), MSE(), Cosine(), NormRatio()) == pytest.approx(
        {"l0": 4, "mse": 0.5, "cosine": 0.9, "norm_ratio": 0.9}
    )


def test_dead_fraction_says_over_how_many_tokens() -> None:
    firing = {None: np.array([0, 3, 0, 1]), 8: np.array([1, 3, 0, 1])}
    found = values(DeadFraction(budgets=(8,)), firing=firing)
    assert found["dead_fraction"].value == 0.5
    assert found["dead_fraction"].params == {"tokens": 10}
    assert found["dead_fraction@8"].value == 0.25
    assert found["dead_fraction"].ci is None
    assert "not measured" in str(values(DeadFraction())["dead_fraction"].null_reason)


def test_budgets_are_reported_beside_the_sae_as_trained() -> None:
    found = numbers(ExplainedVariance(budgets=[8, 8]), L0(budgets=[8]), CrossEntropy(budgets=[8]))
    assert found["explained_variance.centred@8"] == pytest.approx(1 - 40 / 100)
    assert (found["l0"], found["l0@8"]) == (4, 8)
    assert "cross_entropy.clean@8" not in found  # the same at every budget
    assert found["cross_entropy.sae@8"] is None
    reasons = values(CrossEntropy(budgets=[8]))
    assert reasons["cross_entropy.sae@8"].null_reason == "not measured: ce_sae@8"
    assert Metric.model_fields.keys() <= L0.model_fields.keys()
    assert L0(budgets=[8, 16]).measured_at() == (None, 8, 16)


def test_what_is_not_finite_becomes_null_with_the_sums_that_made_it() -> None:
    statistics = by_hand() | {"total_variance": np.zeros(3), "ce_sae": np.array([1, np.nan, 2])}
    found = values(ExplainedVariance(), CrossEntropy(), statistics=statistics)
    assert found["explained_variance.centred"].value is None
    assert found["explained_variance.centred"].null_reason == (
        "not finite, from squared_error = 20, total_variance = 0"
    )
    assert found["cross_entropy.sae"].null_reason == "not finite, from ce_sae = nan, predictions = 13"
    assert found["cross_entropy.clean"].value == 1
    for value in found.values():
        json.dumps(value.plain(), allow_nan=False)


def test_intervals_come_with_ten_documents() -> None:
    ten = {name: np.resize(v, 10) for name, v in by_hand().items()}
    value = values(ExplainedVariance(), statistics=ten)["explained_variance.centred"]
    assert value.n == 10
    assert value.ci is not None
    assert value.ci.low < value.value < value.ci.high
    assert values(ExplainedVariance(), statistics=ten)["explained_variance.centred"] == value  # seeded
    nine = {name: v[:9] for name, v in ten.items()}
    assert values(ExplainedVariance(), statistics=nine)["explained_variance.centred"].ci is None


def test_domains_are_reported_in_turn() -> None:
    found = metric_values([L0()], {"general": by_hand(), "law": by_hand()})
    assert [(v.domain, v.id, v.value) for v in found] == [("general", "l0", 4), ("law", "l0", 4)]


@pytest.mark.parametrize("metric", ALL)
def test_every_metric_reads_only_statistics_that_are_measured(metric: type[Metric]) -> None:
    made = metric(metric=metric.model_fields["metric"].default)
    sae_statistics = set(by_hand()) - SHARED
    assert made.numbers() or made.tallies()
    for number in made.numbers():
        assert set(number.inputs) <= SHARED | sae_statistics
        if made.splices is False:
            assert not any(name.startswith(("ce_", "kl_")) for name in number.inputs)
    ids = [number.id for number in (*made.numbers(), *made.tallies())]
    assert all(i.split(".")[0] == made.metric for i in ids)
    assert sys.modules[metric.__module__].__doc__


def test_bad_parameters_are_refused() -> None:
    for wrong in ({"budgets": [0]}, {"estimators": []}, {"estimators": ["best"]}, {"budget": [1]}):
        with pytest.raises(ValidationError):
            ExplainedVariance(**wrong)


def test_metrics_import_without_torch() -> None:
    modules = ", ".join(sorted({m.__module__ for m in ALL} | {"latentbench.metrics.values"}))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
