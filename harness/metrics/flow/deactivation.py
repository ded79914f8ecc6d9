"""Does removing a latent's predecessor remove the latent? (Feature Flow, arXiv 2502.03032, §4.2), version 1.

At some tokens of each document, for active latents of a residual site with one before it: h ← h + (r − 1) Σ a · v at the
predecessors' sites, at that token only, with activations a of the untouched state and decoder rows v. z is the latent's
activation at the token before, z' after. Only cases with an active predecessor count as tried.

=======================  ===========================================================  ===========
number                   formula                                                      better
=======================  ===========================================================  ===========
`success`                share of tried cases with z' = 0                             higher
`change`                 mean of 1 − z' / z over tried cases                          higher
`covered`                share of all cases that have an active predecessor           higher
`loss_increase`          (Σ CE' − Σ CE) / Σ CE over the predictions from the token    lower
                         to the document's end; `loss: true` only
`exhaustive_success`,    the same for the one active latent of the predecessors'      (a ceiling)
`exhaustive_change`      sites whose removal changes z most; `exhaustive` cases only
=======================  ===========================================================  ===========

The paper's controls are other maps: `flow.matching: random`, `permutation` or `pearson`. `part` says whose predecessors are
removed: `all` at once, `residual`, or `modules` (MLP and attention). Units are documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from harness.metrics.base import Array, Estimator
from harness.metrics.flow.base import FlowStudy, share
from harness.metrics.study import Findings

if TYPE_CHECKING:
    from adapters.protocols import Roots
    from harness.lab import Lab
    from harness.spec.experiment import Experiment

Who = Literal["all", "residual", "modules"]


def _increase(after: Array, before: Array) -> Array:
    return (after - before) / before


class FlowDeactivation(FlowStudy):
    """Deactivation success and activation change."""

    version: ClassVar[int] = 1

    metric: Literal["flow_deactivation"] = "flow_deactivation"
    r: float = 0.0
    """What the predecessors' activations are multiplied by: 0 removes them, below 0 writes their opposite."""
    parts: Annotated[tuple[Who, ...], Field(min_length=1)] = ("all",)
    """Whose predecessors are removed; one number each."""
    documents: PositiveInt | Literal["all"] = 35
    """Documents of each domain, or `all`. The paper's 35."""
    tokens: PositiveInt = 5
    """Tokens of each document, drawn at random. The paper's 5."""
    latents: PositiveInt = 25
    """Active latents per layer and token, the strongest. The paper's upper limit."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Decoder blocks whose outputs are looked at; default all that have a predecessor. The paper: 6, 12 and 18."""
    loss: bool = False
    """Whether to measure the model's loss too: every case then runs through the whole model."""
    exhaustive: Annotated[int, Field(ge=0)] = 0
    """Cases per layer and document for which all active latents before are tried one by one."""

    def numbers(self) -> tuple[Estimator, ...]:
        parts = tuple(dict.fromkeys(self.parts))
        found = [number for part in parts for number in self._of(part)]
        return (*found, *(self._exhaustive() if self.exhaustive else ()))

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        later = {site.index for site in experiment.sites}
        missing = [layer for layer in self.layers or () if layer not in later]
        wrong = (f"flow_deactivation: there is no SAE at layers {missing}",) if missing else ()
        return (*super().problems(experiment, roots), *wrong)

    def run(self, lab: Lab) -> Findings:
        from harness.flow.studies.deactivation import run

        return run(self, lab)

    def _of(self, part: Who) -> tuple[Estimator, ...]:
        made = [
            self._number("success", "fraction", True, part, "deactivated"),
            self._number("change", "fraction", True, part, "change"),
            self._number("covered", "fraction", True, part, "tried", "flow_deactivation.cases"),
        ]
        if self.loss:
            inputs = (f"flow_deactivation.{part}.loss_after", f"flow_deactivation.{part}.loss_before")
            params = {"part": part, "r": self.r}
            made.append(
                Estimator("flow_deactivation.loss_increase", 1, "fraction", False, inputs, _increase, params=params)
            )
        return tuple(made)

    def _number(
        self, name: str, unit: str, better: bool | None, part: str, statistic: str, whole: str | None = None
    ) -> Estimator:
        inputs = (f"flow_deactivation.{part}.{statistic}", whole or f"flow_deactivation.{part}.tried")
        params = {"part": part, "r": self.r}
        return Estimator(f"flow_deactivation.{name}", 1, unit, better, inputs, share, params=params)

    def _exhaustive(self) -> tuple[Estimator, ...]:
        def number(name: str, statistic: str) -> Estimator:
            inputs = (f"flow_deactivation.exhaustive.{statistic}", "flow_deactivation.exhaustive.tried")
            return Estimator(
                f"flow_deactivation.exhaustive_{name}", 1, "fraction", None, inputs, share, params={"r": self.r}
            )

        return number("success", "deactivated"), number("change", "change")
