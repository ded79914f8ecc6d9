"""Does removing a latent's predecessor remove the latent? (Feature Flow, arXiv 2502.03032, §4.2), version 2.

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
`exhaustive_success`,    the same for the one active latent of the part's sites       (a reference)
`exhaustive_change`      whose removal lowers z' most, in some of the tried cases
`matched_success`,       the same for the latent's matches in those very cases        (a reference)
`matched_change`
=======================  ===========================================================  ===========

The paper's controls are other maps: `flow.matching: random`, `permutation` or `pearson`. `part` says whose predecessors are
removed: `all` at once, `residual`, or `modules` (MLP and attention). The exhaustive search removes one latent at a time: with
one match per latent no single match of `residual` can change z more, but several matches removed together can. Units are
documents.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.flow.places import block_of, targets
from latentbench.metrics.base import Array, Estimator
from latentbench.metrics.flow.base import FlowStudy, share
from latentbench.metrics.study import Findings

if TYPE_CHECKING:
    from latentbench.activations.site import Site
    from latentbench.lab import Lab
    from latentbench.spec.experiment import Experiment
    from latentbench_adapters.protocols import Roots

Who = Literal["all", "residual", "modules"]


def _increase(after: Array, before: Array) -> Array:
    return (after - before) / before


class FlowDeactivation(FlowStudy):
    """Deactivation success and activation change."""

    version: ClassVar[int] = 2

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
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Decoder blocks whose outputs are looked at; default all that have a predecessor. The paper: 6, 12 and 18."""
    loss: bool = False
    """Whether to measure the model's loss too: every case then runs through the whole model."""
    exhaustive: Annotated[int, Field(ge=0)] = 0
    """Tried cases per layer and document, drawn at random, in which all active latents before are removed one by one too."""

    def numbers(self) -> tuple[Estimator, ...]:
        parts = tuple(dict.fromkeys(self.parts))
        found = [number for part in parts for number in self._of(part)]
        return (*found, *(number for part in parts for number in self._exhaustive(part) if self.exhaustive))

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        there = [block_of(site) for site in targets(experiment.sites)]
        missing = [layer for layer in self.layers or () if layer not in there]
        wrong = (
            (
                f"flow_deactivation: no residual stream leaving layers {missing} has an SAE and one before it (there are {there})",
            )
            if missing
            else ()
        )
        return (*super().problems(experiment, roots), *wrong)

    def sites(self, residual: Iterable[Site]) -> tuple[Site, ...]:
        """The residual sites whose latents are looked at, of all."""
        return tuple(site for site in targets(residual) if self.layers is None or block_of(site) in self.layers)

    def run(self, lab: Lab) -> Findings:
        from latentbench.flow.studies.deactivation import run

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

    def _exhaustive(self, part: Who) -> tuple[Estimator, ...]:
        def number(who: str, name: str, statistic: str) -> Estimator:
            inputs = (f"flow_deactivation.{who}.{part}.{statistic}", f"flow_deactivation.{who}.{part}.tried")
            params = {"part": part, "r": self.r}
            return Estimator(f"flow_deactivation.{who}_{name}", 2, "fraction", None, inputs, share, params=params)

        pairs = (("success", "deactivated"), ("change", "change"))
        return tuple(number(who, *pair) for who in ("exhaustive", "matched") for pair in pairs)
