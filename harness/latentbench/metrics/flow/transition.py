"""Explained variance of the next layer through a map (Feature Flow, arXiv 2502.03032, App. F), version 2.

Codes z of SAE_L become codes z T of SAE_(L+n), which its decoder turns into a prediction of the hidden state h of layer
L+n; T is composed of the maps of n `steps`. With V = Σ ‖h − h̄‖² around the domain's mean and E = Σ ‖h − ĥ‖² over ordinary
tokens, all of one layer divided by that layer's V so that layers weigh alike:  number = 1 − Σ E / Σ V.

==========  =================================================  ===============
number      ĥ                                                  better
==========  =================================================  ===============
`carried`   decoder_(L+n)(z T), per `scales`                   higher
`own`       SAE_(L+n)(h)                                       (a ceiling)
`copied`    decoder_L(z)                                       (a reference)
`encoded`   SAE_(L+n)(decoder_L(z))                            (a reference)
==========  =================================================  ===============

`encoded` is the encoder-decoder operator W_dec,L W_enc,(L+n) with the biases and the activation of SAE_(L+n): all latents
carry on to all others, whatever the map. `scales` says how large a carried activation is: `norm` a · ‖w‖ / ‖w'‖, the same vector length; `threshold` a · θ' / θ, as
folded SAEs pass it on (SAE Match, eq. 4); `activation` a · ā' / ā with mean activations on the texts the maps may be fitted
on. Units are documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.flow.places import targets
from latentbench.metrics.base import Array, Estimator
from latentbench.metrics.flow.base import FlowStudy
from latentbench.metrics.study import Findings

if TYPE_CHECKING:
    from latentbench.lab import Lab
    from latentbench.section import Json
    from latentbench.spec.experiment import Experiment
    from latentbench_adapters.protocols import Roots

Scale = Literal["norm", "threshold", "activation"]


def _explained(error: Array, variance: Array) -> Array:
    return 1 - error / variance


class FlowTransition(FlowStudy):
    """What an SAE and a map tell of the next layer's hidden states."""

    version: ClassVar[int] = 2

    metric: Literal["flow_transition"] = "flow_transition"
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = ("norm",)
    """How activations are brought to the next SAE's scale; one number each."""
    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    """How many residual sites further on the codes are carried, by maps composed layer by layer; one set of numbers each."""

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(number for steps in dict.fromkeys(self.steps) for number in self._at(steps))

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        reach = len(targets(experiment.sites))
        far = [steps for steps in self.steps if steps > reach]
        wrong = (
            (f"flow_transition: {reach + 1} residual sites are at most {reach} steps apart, not {far}",) if far else ()
        )
        return (*super().problems(experiment, roots), *wrong)

    @property
    def folds(self) -> frozenset[str]:
        return frozenset(self.scales)

    def identity(self, experiment: Experiment, roots: Roots) -> Json:
        return {"texts": self.fold_texts(experiment, roots)}

    def run(self, lab: Lab) -> Findings:
        from latentbench.flow.studies.transition import run

        return run(self, lab)

    def _at(self, steps: int) -> tuple[Estimator, ...]:
        told = {} if steps == 1 else {"steps": steps}

        def number(name: str, statistic: str, better: bool | None, **params: str) -> Estimator:
            inputs = (f"flow_transition.{statistic}.{steps}", f"flow_transition.variance.{steps}")
            return Estimator(
                f"flow_transition.{name}", 1, "fraction", better, inputs, _explained, params={**params, **told}
            )

        carried = (number("carried", f"carried_{s}", True, scale=s) for s in dict.fromkeys(self.scales))
        return (*carried, *(number(name, name, None) for name in ("own", "copied", "encoded")))
