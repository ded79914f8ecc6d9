"""Explained variance: how much of the hidden states' variance a reconstruction keeps, under named definitions.

With x_t the hidden state of token t, x̂_t its reconstruction, e_t = x_t − x̂_t, x̄ and ē their means over the domain's
tokens, sums over all ordinary tokens of the domain, unit: fraction, higher is better:

============================  =======================================  ==============================================
estimator                     formula                                  who reports it
============================  =======================================  ==============================================
`centred` (default)           1 − Σ‖e_t‖² / Σ‖x_t − x̄‖²                1 − FVU; sae-lens ≥ 6.4x `explained_variance`
`residual_variance`           1 − Σ‖e_t − ē‖² / Σ‖x_t − x̄‖²            dictionary_learning `frac_variance_explained`,
                                                                       KronSAE (arXiv 2505.22255, section 4)
`token_ratio`                 mean_t (1 − ‖e_t‖² / ‖x_t − x̄‖²)         SAEBench and sae-lens `…_legacy`, up to x̄
`uncentred`                   1 − Σ‖e_t‖² / Σ‖x_t‖²                    1 − normalised MSE about the origin
============================  =======================================  ==============================================

They differ: `residual_variance` forgives a constant offset, `token_ratio` weighs every token alike and is lowered by
tokens near the mean, `uncentred` is raised by a large common mean. The legacy implementations take x̄ over a batch,
here it is the domain's, so that the number does not depend on the batch size.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from latentbench.metrics.base import Array, BudgetedMetric, Estimator

EstimatorName = Literal["centred", "residual_variance", "token_ratio", "uncentred"]


def _fraction_kept(lost: Array, whole: Array) -> Array:
    return 1 - lost / whole


def _estimator(name: str, *inputs: str) -> Estimator:
    return Estimator(f"explained_variance.{name}", 1, "fraction", True, inputs, _fraction_kept)


_ESTIMATORS: dict[str, Estimator] = {
    "centred": _estimator("centred", "squared_error", "total_variance"),
    "residual_variance": _estimator("residual_variance", "residual_variance", "total_variance"),
    "token_ratio": Estimator(
        "explained_variance.token_ratio", 1, "fraction", True, ("token_ratio", "tokens"), lambda total, n: total / n
    ),
    "uncentred": _estimator("uncentred", "squared_error", "squared_norm"),
}


class ExplainedVariance(BudgetedMetric):
    """Share of the hidden states' variance that the reconstruction keeps."""

    metric: Literal["explained_variance"] = "explained_variance"
    estimators: Annotated[tuple[EstimatorName, ...], Field(min_length=1)] = ("centred",)
    """Definitions to report: centred, residual_variance, token_ratio, uncentred."""

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(_ESTIMATORS[name] for name in dict.fromkeys(self.estimators))
