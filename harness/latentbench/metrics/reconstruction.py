"""Distance, direction and length of reconstructions x̂_t against hidden states x_t. Version 1, over ordinary tokens.

* `mse` = Σ‖x_t − x̂_t‖² / (tokens · d): the squared error *per dimension*; lower is better, unit of x squared. sae-lens
  reports the error summed over dimensions, d times as much; SAEBench divides that by the batch size once more.
* `cosine` = mean_t cos(x_t, x̂_t), where cos with a zero vector is 0 (sae-lens: NaN); higher is better.
* `norm_ratio` = mean_t ‖x̂_t‖ / ‖x_t‖; 1 is best, below 1 is shrinkage. SAEBench and sae-lens `l2_ratio`.
"""

from __future__ import annotations

from typing import Literal

from latentbench.metrics.base import Array, BudgetedMetric, Estimator


def _per(total: Array, n: Array) -> Array:
    return total / n


_MSE = Estimator("mse", 1, "squared activation/dimension", False, ("squared_error", "elements"), _per)
_COSINE = Estimator("cosine", 1, "cosine", True, ("cosine", "tokens"), _per)
_NORM_RATIO = Estimator("norm_ratio", 1, "ratio", None, ("norm_ratio", "tokens"), _per)


class MSE(BudgetedMetric):
    """Mean squared error per dimension."""

    metric: Literal["mse"] = "mse"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_MSE,)


class Cosine(BudgetedMetric):
    """Mean cosine between hidden state and reconstruction."""

    metric: Literal["cosine"] = "cosine"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_COSINE,)


class NormRatio(BudgetedMetric):
    """Mean ratio of the reconstruction's norm to the hidden state's."""

    metric: Literal["norm_ratio"] = "norm_ratio"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_NORM_RATIO,)
