"""Explained variance of the next layer through a map (Feature Flow, arXiv 2502.03032, App. F), version 2.

Codes z of SAE_L become codes z T of SAE_(L+1), which its decoder turns into a prediction of the hidden state h of layer
L+1. With V = Σ ‖h − h̄‖² around the domain's mean and E = Σ ‖h − ĥ‖² over ordinary tokens, all of one layer divided by that
layer's V so that layers weigh alike:  number = 1 − Σ E / Σ V.

==========  =================================================  ===============
number      ĥ                                                  better
==========  =================================================  ===============
`carried`   decoder_(L+1)(z T), per `scales`                   higher
`own`       SAE_(L+1)(h)                                       (a ceiling)
`copied`    SAE_L of the hidden state before                   (a reference)
==========  =================================================  ===============

`scales` says how large a carried activation is: `norm` a · ‖w‖ / ‖w'‖, the same vector length; `threshold` a · θ' / θ, as
folded SAEs pass it on (SAE Match, eq. 4); `activation` a · ā' / ā with mean activations on the texts the maps may be fitted
on. Units are documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from harness.metrics.base import Array, Estimator
from harness.metrics.flow.base import FlowStudy
from harness.metrics.study import Findings

if TYPE_CHECKING:
    from adapters.protocols import Roots
    from harness.lab import Lab
    from harness.section import Json
    from harness.spec.experiment import Experiment

Scale = Literal["norm", "threshold", "activation"]


def _explained(error: Array, variance: Array) -> Array:
    return 1 - error / variance


class FlowTransition(FlowStudy):
    """What an SAE and a map tell of the next layer's hidden states."""

    version: ClassVar[int] = 2

    metric: Literal["flow_transition"] = "flow_transition"
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = ("norm",)
    """How activations are brought to the next SAE's scale; one number each."""

    def numbers(self) -> tuple[Estimator, ...]:
        def number(name: str, statistic: str, better: bool | None, **params: str) -> Estimator:
            inputs = (f"flow_transition.{statistic}", "flow_transition.variance")
            return Estimator(f"flow_transition.{name}", 1, "fraction", better, inputs, _explained, params=params)

        carried = (number("carried", f"carried_{s}", True, scale=s) for s in dict.fromkeys(self.scales))
        return (*carried, number("own", "own", None), number("copied", "copied", None))

    @property
    def folds_thresholds(self) -> bool:
        return "threshold" in self.scales

    def identity(self, experiment: Experiment, roots: Roots) -> Json:
        return {"texts": self.fold_texts(experiment, roots, "activation" in self.scales)}

    def run(self, lab: Lab) -> Findings:
        from harness.flow.studies.transition import run

        return run(self, lab)
