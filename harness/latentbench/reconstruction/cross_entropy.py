"""Cross-entropy: what the model loses when a reconstruction takes the hidden states' place.

For every prediction of a real token (positions 1 … length−1 of each document; the prediction right after BOS counts)
in nats, version 2. `sae`, `zero` and `mean` replace the hidden states at the site by the reconstruction, by 0, and by
the domain's mean; special tokens, named ones and massive ones keep theirs in all three, so that the three stand on the same
footing (version 1 replaced massive ones). An SAE that would destroy a massive activation is not punished for that here: see
`every_token`, which counts and replaces all of them.

=======================  ===========================================  ==========================
number                   formula                                      better
=======================  ===========================================  ==========================
`clean`                  CE of the untouched model                    (a property of the model)
`sae`, `zero`, `mean`    CE with the substitution                     lower (`sae`)
`increase`               CE_sae − CE_clean                            lower
`loss_recovered_zero`    (CE_zero − CE_sae) / (CE_zero − CE_clean)    higher; SAEBench `ce_loss_score`, see below
`loss_recovered_mean`    (CE_mean − CE_sae) / (CE_mean − CE_clean)    higher; a harder reference than zero
`kl`                     mean KL(clean ‖ sae)                         lower
`kl_recovered`           1 − KL_sae / KL_zero                         higher; SAEBench `kl_div_score`
=======================  ===========================================  ==========================

SAEBench and sae-lens zero the special tokens too while their SAE keeps them, so their numerator and denominator differ
in more than the SAE: on a TinyStories model of 260,000 parameters CE_zero is 10.8 nats with BOS kept and 6.2 with BOS
zeroed. They also leave out predictions made *from* a special token. Means are taken before ratios.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from latentbench.metrics.base import BudgetedMetric, Display, Estimator, ratio
from latentbench.statistics.arrays import Array


def _increase(sae: Array, clean: Array, n: Array) -> Array:
    return (sae - clean) / n


def _recovered(ablated: Array, sae: Array, clean: Array) -> Array:
    return (ablated - sae) / (ablated - clean)


def _kl_recovered(sae: Array, zero: Array) -> Array:
    return 1 - sae / zero


def _nats(name: str, statistic: str, better: bool | None, version: int = 2) -> Estimator:
    return Estimator(f"cross_entropy.{name}", version, "nats/token", better, (statistic, "predictions"), ratio)


def _loss_recovered(reference: str) -> Estimator:
    inputs = (f"ce_{reference}", "ce_sae", "ce_clean")
    return Estimator(f"cross_entropy.loss_recovered_{reference}", 2, "fraction", True, inputs, _recovered)


_ESTIMATORS = (
    _nats("clean", "ce_clean", None, version=1),
    _nats("sae", "ce_sae", False),
    _nats("zero", "ce_zero", None),
    _nats("mean", "ce_mean", None),
    Estimator("cross_entropy.increase", 2, "nats/token", False, ("ce_sae", "ce_clean", "predictions"), _increase),
    _loss_recovered("zero"),
    _loss_recovered("mean"),
    _nats("kl", "kl_sae", False),
    Estimator("cross_entropy.kl_recovered", 2, "fraction", True, ("kl_sae", "kl_zero"), _kl_recovered),
)


class CrossEntropy(BudgetedMetric):
    """Next-token loss with the reconstruction spliced into the model, against the clean and the ablated model."""

    splices: ClassVar[bool] = True
    displays: ClassVar[Mapping[str, Display]] = {
        "cross_entropy.clean": Display("CE clean"),
        "cross_entropy.sae": Display("CE with SAE"),
        "cross_entropy.zero": Display("CE zero-ablated"),
        "cross_entropy.mean": Display("CE mean-ablated"),
        "cross_entropy.increase": Display("CE increase", 30, movers=True, against="l0"),
        "cross_entropy.loss_recovered_zero": Display("Loss rec. (zero)", 40),
        "cross_entropy.loss_recovered_mean": Display("Loss rec. (mean)"),
        "cross_entropy.kl": Display("KL"),
        "cross_entropy.kl_recovered": Display("KL recovered"),
    }

    metric: Literal["cross_entropy"] = "cross_entropy"

    def numbers(self) -> tuple[Estimator, ...]:
        return _ESTIMATORS
