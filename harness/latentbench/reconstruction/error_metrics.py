"""How far reconstructions x̂_t are from hidden states x_t: mse, cosine, norm ratio and explained variance.

Version 2, over ordinary tokens: not special, not named by the spec, and not massive at the site (version 1 counted massive ones).

* `mse` = Σ‖x_t − x̂_t‖² / (tokens · d): the squared error *per dimension*; lower is better, unit of x squared. sae-lens
  reports the error summed over dimensions, d times as much; SAEBench divides that by the batch size once more.
* `cosine` = mean_t cos(x_t, x̂_t), where cos with a zero vector is 0 (sae-lens: NaN); higher is better.
* `norm_ratio` = mean_t ‖x̂_t‖ / ‖x_t‖; 1 is best, below 1 is shrinkage. SAEBench and sae-lens `l2_ratio`.
* `explained_variance`: how much of the hidden states' variance a reconstruction keeps, under named definitions. With
  e_t = x_t − x̂_t, x̄ and ē the means of x_t and e_t over the domain's tokens, sums over all ordinary tokens of the domain,
  unit: fraction, higher is better:

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

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from latentbench.metrics.base import BudgetedMetric, Display, Estimator, ratio
from latentbench.statistics.arrays import Array

_MSE = Estimator("mse", 2, "squared activation/dimension", False, ("squared_error", "elements"), ratio)
_COSINE = Estimator("cosine", 2, "cosine", True, ("cosine", "tokens"), ratio)
_NORM_RATIO = Estimator("norm_ratio", 2, "ratio", None, ("norm_ratio", "tokens"), ratio)


class MSE(BudgetedMetric):
    """Mean squared error per dimension."""

    displays: ClassVar[Mapping[str, Display]] = {"mse": Display("MSE")}

    metric: Literal["mse"] = "mse"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_MSE,)


class Cosine(BudgetedMetric):
    """Mean cosine between hidden state and reconstruction."""

    displays: ClassVar[Mapping[str, Display]] = {"cosine": Display("Cosine")}

    metric: Literal["cosine"] = "cosine"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_COSINE,)


class NormRatio(BudgetedMetric):
    """Mean ratio of the reconstruction's norm to the hidden state's."""

    displays: ClassVar[Mapping[str, Display]] = {"norm_ratio": Display("Norm ratio")}

    metric: Literal["norm_ratio"] = "norm_ratio"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_NORM_RATIO,)


ExplainedVarianceName = Literal["centred", "residual_variance", "token_ratio", "uncentred"]


def _fraction_kept(lost: Array, whole: Array) -> Array:
    return 1 - lost / whole


def _variance_estimator(name: str, *inputs: str) -> Estimator:
    return Estimator(f"explained_variance.{name}", 2, "fraction", True, inputs, _fraction_kept)


_ESTIMATORS: dict[str, Estimator] = {
    "centred": _variance_estimator("centred", "squared_error", "total_variance"),
    "residual_variance": _variance_estimator("residual_variance", "residual_variance", "total_variance"),
    # The statistic is 1 − … of each token already, so its mean is the number.
    "token_ratio": Estimator("explained_variance.token_ratio", 2, "fraction", True, ("token_ratio", "tokens"), ratio),
    "uncentred": _variance_estimator("uncentred", "squared_error", "squared_norm"),
}


class ExplainedVariance(BudgetedMetric):
    """Share of the hidden states' variance that the reconstruction keeps."""

    displays: ClassVar[Mapping[str, Display]] = {
        "explained_variance.centred": Display("EV centred", 20, movers=True, against="l0"),
        "explained_variance.residual_variance": Display("EV residual var."),
        "explained_variance.token_ratio": Display("EV token ratio"),
        "explained_variance.uncentred": Display("EV uncentred"),
    }

    metric: Literal["explained_variance"] = "explained_variance"
    estimators: Annotated[tuple[ExplainedVarianceName, ...], Field(min_length=1)] = ("centred",)
    """Definitions to report: centred, residual_variance, token_ratio, uncentred."""

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(_ESTIMATORS[name] for name in dict.fromkeys(self.estimators))
