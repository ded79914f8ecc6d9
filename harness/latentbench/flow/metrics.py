"""The metrics on flow maps: how well latents match, agree, carry hidden states on, and can be deactivated.

`flow_matching`. How well latents match those of the layer before (Feature Flow, arXiv 2502.03032, §3.2), version 2.

Over latents of residual sites that fire at least once on the domain and have a residual site before theirs; s(P) is the
cosine between the decoder rows of a latent and of its best match in P, whatever chose the match.

=================  ====================================================================  ===========
number             formula                                                               better
=================  ====================================================================  ===========
`rate`             share of latents with s(R) ≥ `flow.thresholds.cut`, or ≥ what         higher
                   chance gives with `flow.thresholds.chance` where that is more
`score`            mean s(R)                                                             higher
`translated`       share with high s(R), low s(M) and s(A)                               (a property)
`processed`        share with high s(R), and high s(M) or s(A)                           (a property)
`newborn`          share with low s(R), and high s(M) or s(A)                            (a property)
`unexplained`      share with everything low                                             (a property)
=================  ====================================================================  ===========

High is `flow.thresholds.residual` and `.module`, raised to what chance gives likewise; the cut-offs applied are in the
report and in exported graphs. Units are latents, drawn evenly from all layers; those of two seeds are not the same, so
nothing is paired.

`flow_agreement`. Do matched latents fire on the same tokens? (Feature Flow, arXiv 2502.03032, §4.1), version 2.

A firing is an active latent of a residual site, with one before it, at an ordinary token. Its predecessors are its
matches in the residual stream before (R), the MLP (M) and the attention (A) of the block between; a predecessor fires with
it when any of its `flow.k` matches is active at the same token.

====================  ===========================================================  ======
number                formula                                                      better
====================  ===========================================================  ======
`residual`            share of firings whose R predecessor fires with them         higher
`residual_chance`     the same if predecessors fired independently, at their own   (a reference)
                      rate on the domain
`residual_lift`       `residual` / `residual_chance`                               higher
`mlp`, `attention`    share of firings whose M (A) predecessor fires with them     higher
`nowhere`             share of firings with none of them                           lower
====================  ===========================================================  ======

Units are documents. Beside them, without interval, `separable_residual`, `_mlp` and `_attention`: of all pairs of the
eight groups (which of R, M, A fire) per layer, the share that a Mann-Whitney U test on s(R), s(M) or s(A) tells apart with
p < 0.001. The paper tests firings; here each latent counts once per group, because firings of one latent are no
independent draws.

`flow_transition`. Explained variance of the next layer through a map (Feature Flow, arXiv 2502.03032, App. F), version 3.

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
carry on to all others, whatever the map. `scales` says how large a carried activation is: `norm` a · ‖w‖ / ‖w'‖, the same
vector length; `threshold` a · θ' / θ, as folded SAEs pass it on (SAE Match, eq. 4); `activation` a · ā' / ā with mean
activations on the texts the maps may be fitted on. Units are documents.

`flow_deactivation`. Does removing a latent's predecessor remove the latent? (Feature Flow, arXiv 2502.03032, §4.2), version 3.

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

from collections.abc import Iterable, Mapping
from operator import truediv
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.flow.options import LABELS, Flow, missing_texts, unfoldable
from latentbench.flow.topology import block_of, targets, untraceable
from latentbench.metrics.base import Display, Estimator
from latentbench.statistics.arrays import Array
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.core.sites import Site
    from latentbench.core.spec_model import Json
    from latentbench.study.context import ExperimentView


class FlowStudy(Study):
    """A study of the maps that the spec's `flow:` section makes."""

    needs: ClassVar[frozenset[str]] = frozenset({"sae", "flow"})

    @property
    def folds(self) -> frozenset[str]:
        """What latents are scaled by: `threshold`, `activation` or neither."""
        return frozenset()

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        """Sites through which no flow can be traced, and scales that these SAEs and texts do not give."""
        thresholds = unfoldable(experiment) if "threshold" in self.folds else ()
        texts = missing_texts(_flow(experiment), experiment) if "activation" in self.folds else ()
        return (*untraceable(experiment.sites), *(f"{self.metric}: {message}" for message in (*thresholds, *texts)))

    def fold_texts(self, experiment: ExperimentView, roots: Roots) -> Json:
        """Identity of the texts that mean activations are taken on, those maps may be fitted on; None where none are."""
        flow = _flow(experiment) if "activation" in self.folds else None
        return flow.texts(experiment, roots) if flow else None


def _flow(experiment: ExperimentView) -> Flow | None:
    return experiment.flow if isinstance(experiment.flow, Flow) else None


class FlowMatching(FlowStudy):
    """Matching rate, mean score and where latents come from."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.flow.matching_study:measure_matching"
    displays: ClassVar[Mapping[str, Display]] = {
        "flow_matching.rate": Display("Matched", 120),
        "flow_matching.score": Display("Matching", 130),
    }

    metric: Literal["flow_matching"] = "flow_matching"
    latents: PositiveInt = 4096
    """Latents that intervals are computed over, drawn at random where more fire."""

    def numbers(self) -> tuple[Estimator, ...]:
        def number(name: str, statistic: str, unit: str, better: bool | None) -> Estimator:
            inputs = (f"flow_matching.{statistic}", "flow_matching.latents")
            return Estimator(f"flow_matching.{name}", 2, unit, better, inputs, truediv, units="latents", paired=False)

        return (
            number("rate", "matched", "fraction", True),
            number("score", "cosine", "cosine", True),
            *(number(label, label, "fraction", None) for label in LABELS),
        )


class FlowAgreement(FlowStudy):
    """Whether matched latents fire together, and whether scores tell where latents come from."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.flow.matching_study:measure_agreement"
    displays: ClassVar[Mapping[str, Display]] = {"flow_agreement.residual": Display("Agreement", 140)}

    metric: Literal["flow_agreement"] = "flow_agreement"
    tokens: PositiveInt = 5
    """Tokens of each document that the group test looks at, drawn at random (the paper's 5)."""
    minimum: PositiveInt = Field(default=20, ge=2)
    """Latents a group needs to be tested."""
    alpha: float = Field(default=0.001, gt=0, lt=1)
    """Below this p two groups count as told apart (the paper's value)."""

    def numbers(self) -> tuple[Estimator, ...]:
        def number(name: str, better: bool | None) -> Estimator:
            inputs = (f"flow_agreement.{name}", "flow_agreement.firings")
            return Estimator(f"flow_agreement.{name}", 2, "fraction", better, inputs, truediv)

        lift = ("flow_agreement.residual", "flow_agreement.residual_chance")
        return (
            number("residual", True),
            number("residual_chance", None),
            Estimator("flow_agreement.residual_lift", 2, "ratio", True, lift, truediv),
            number("mlp", True),
            number("attention", True),
            number("nowhere", False),
        )


Scale = Literal["norm", "threshold", "activation"]


def _explained(error: Array, variance: Array) -> Array:
    return 1 - error / variance


class FlowTransition(FlowStudy):
    """What an SAE and a map tell of the next layer's hidden states."""

    version: ClassVar[int] = 3
    implementation: ClassVar[str] = "latentbench.flow.transition_study:measure_transition"
    displays: ClassVar[Mapping[str, Display]] = {"flow_transition.carried": Display("Carried over", 160)}

    metric: Literal["flow_transition"] = "flow_transition"
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = ("norm",)
    """How activations are brought to the next SAE's scale; one number each."""
    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    """How many residual sites further on the codes are carried, by maps composed layer by layer; one set of numbers each."""

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(number for steps in dict.fromkeys(self.steps) for number in self._at(steps))

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        reach = len(targets(experiment.sites))
        far = [steps for steps in self.steps if steps > reach]
        wrong = (
            (f"flow_transition: {reach + 1} residual sites are at most {reach} steps apart, not {far}",) if far else ()
        )
        return (*super().problems_in(experiment, roots), *wrong)

    @property
    def folds(self) -> frozenset[str]:
        return frozenset(self.scales)

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"texts": self.fold_texts(experiment, roots)}

    def _at(self, steps: int) -> tuple[Estimator, ...]:
        told = {} if steps == 1 else {"steps": steps}

        def number(name: str, statistic: str, better: bool | None, **params: str) -> Estimator:
            inputs = (f"flow_transition.{statistic}.{steps}", f"flow_transition.variance.{steps}")
            return Estimator(
                f"flow_transition.{name}", 2, "fraction", better, inputs, _explained, params={**params, **told}
            )

        carried = (number("carried", f"carried_{s}", True, scale=s) for s in dict.fromkeys(self.scales))
        return (*carried, *(number(name, name, None) for name in ("own", "copied", "encoded")))


Removed = Literal["all", "residual", "modules"]


def _increase(after: Array, before: Array) -> Array:
    return (after - before) / before


class FlowDeactivation(FlowStudy):
    """Deactivation success and activation change."""

    version: ClassVar[int] = 3
    implementation: ClassVar[str] = "latentbench.flow.deactivation_study:measure_deactivation"
    displays: ClassVar[Mapping[str, Display]] = {"flow_deactivation.success": Display("Deactivation", 150)}

    metric: Literal["flow_deactivation"] = "flow_deactivation"
    r: float = 0.0
    """What the predecessors' activations are multiplied by: 0 removes them, below 0 writes their opposite."""
    parts: Annotated[tuple[Removed, ...], Field(min_length=1)] = ("all",)
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

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        there = [block_of(site) for site in targets(experiment.sites)]
        missing = [layer for layer in self.layers or () if layer not in there]
        wrong = (
            (
                f"flow_deactivation: no residual stream leaving layers {missing} has an SAE and one before it (there are {there})",
            )
            if missing
            else ()
        )
        return (*super().problems_in(experiment, roots), *wrong)

    def sites(self, residual: Iterable[Site]) -> tuple[Site, ...]:
        """The residual sites whose latents are looked at, of all."""
        return tuple(site for site in targets(residual) if self.layers is None or block_of(site) in self.layers)

    def _of(self, part: Removed) -> tuple[Estimator, ...]:
        made = [
            self._number("success", "fraction", True, part, "deactivated"),
            self._number("change", "fraction", True, part, "change"),
            self._number("covered", "fraction", True, part, "tried", "flow_deactivation.cases"),
        ]
        if self.loss:
            inputs = (f"flow_deactivation.{part}.loss_after", f"flow_deactivation.{part}.loss_before")
            params = {"part": part, "r": self.r}
            made.append(
                Estimator("flow_deactivation.loss_increase", 2, "fraction", False, inputs, _increase, params=params)
            )
        return tuple(made)

    def _number(
        self, name: str, unit: str, better: bool | None, part: str, statistic: str, whole: str | None = None
    ) -> Estimator:
        inputs = (f"flow_deactivation.{part}.{statistic}", whole or f"flow_deactivation.{part}.tried")
        params = {"part": part, "r": self.r}
        return Estimator(f"flow_deactivation.{name}", 2, unit, better, inputs, truediv, params=params)

    def _exhaustive(self, part: Removed) -> tuple[Estimator, ...]:
        def number(who: str, name: str, statistic: str) -> Estimator:
            inputs = (f"flow_deactivation.{who}.{part}.{statistic}", f"flow_deactivation.{who}.{part}.tried")
            params = {"part": part, "r": self.r}
            return Estimator(f"flow_deactivation.{who}_{name}", 3, "fraction", None, inputs, truediv, params=params)

        pairs = (("success", "deactivated"), ("change", "change"))
        return tuple(number(who, *pair) for who in ("exhaustive", "matched") for pair in pairs)
