"""`metric: autointerp`: can somebody who reads a latent's explanation tell where it fires?

The definition of every number stands in harness/latentbench/autointerp/definition.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from latentbench.autointerp.definition import VERSION, HardNegatives, ScoringProtocol, estimators
from latentbench.autointerp.judging import CHARACTERS_PER_TOKEN, Prices, requests_per_latent
from latentbench.autointerp.lexical_judge import LexicalJudge
from latentbench.autointerp.prompts import VERSION as PROMPTS
from latentbench.core.judges import RuleJudge
from latentbench.core.paths import Roots
from latentbench.core.plugins import Choice
from latentbench.core.protocols import Judge
from latentbench.core.spec_model import Json, without_default
from latentbench.metrics.base import BudgetedMetric, Display, Estimator
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.study.context import ExperimentView

_CHARACTERS, _INSTRUCTIONS, _REPLY = 4.5, 900, 60
"""Rough sizes for the preview: characters of a token, characters of a prompt's instructions, tokens of a reply."""


class Autointerp(BudgetedMetric, Study):
    """Detection and fuzzing of explanations of sampled latents, by a judge, with intervals over latents."""

    version: ClassVar[int] = VERSION
    implementation: ClassVar[str] = "latentbench.autointerp.study:measure_autointerp"
    reads_states: ClassVar[bool] = True
    handling: ClassVar[frozenset[str]] = frozenset({"max_requests", "max_cost", "prices"})
    displays: ClassVar[Mapping[str, Display]] = {"autointerp.score": Display("Autointerp", 60, least=0.0)}

    metric: Literal["autointerp"] = "autointerp"
    judge: Annotated[Judge, Choice("judges", "adapter")] = LexicalJudge()
    """Who explains and answers; `lexical` needs no language model and no network."""
    explainer: Annotated[Judge, Choice("judges", "adapter")] | None = None
    """Who explains instead, where the judge is a chat model: another one, or the same with other settings."""
    domain: str | None = None
    """Evaluation domain whose documents are read; default the first."""
    latents: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Latents sampled per budget, evenly over the order of density."""
    explain_examples: Annotated[int, Field(ge=4, le=256)] = 16
    """Windows with the latent that it is explained from; a judge that learns gets as many without it."""
    test_examples: Annotated[int, Field(ge=3, le=1024)] = 18
    """Windows with the latent that are asked about, and as many without it."""
    radius: Annotated[int, Field(ge=2, le=128)] = 10
    """Tokens on either side in a window."""
    quantiles: Annotated[int, Field(ge=1, le=64)] = 4
    """Equal parts of the activation distribution that examples are taken from evenly."""
    from_quantile: Annotated[float, Field(ge=0, le=0.95)] = 0.0
    """Only windows with a peak above this quantile of the latent's peaks are explained from and asked about; 0.5 is the
    stronger half, in which latents are easier to tell."""
    hard_negatives: HardNegatives = "none"
    """Windows without the latent are drawn at random, or preferably with a token on which it fires elsewhere, or with one
    of the eight latents of the most similar decoder directions."""
    max_requests: PositiveInt | None = None
    """Hard limit on requests to the judge."""
    max_cost: NonNegativeFloat | None = None
    """Hard limit on what the requests cost, in the unit of `prices`."""
    prices: Prices | None = None
    """Price of a million tokens: `{prompt: 0.15, reply: 0.6}`."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("max_cost needs `prices: {prompt: …, reply: …}` per million tokens")
        return self

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if self.explainer is not None and isinstance(self.judge, RuleJudge):
            raise ValueError(
                f"the judge {self.judge.adapter!r} answers by what it learned itself: leave out `explainer`"
            )
        if isinstance(self.explainer, RuleJudge):
            raise ValueError(f"explainer: {self.explainer.adapter!r} has no words of its own; it must be a chat model")
        return self

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), ("explainer", "from_quantile"), made(self))

    @property
    def judges(self) -> str:
        """Who answers, and who explains where that is another."""
        return (
            self.judge.label if self.explainer is None else f"{self.judge.label}, explained by {self.explainer.label}"
        )

    @property
    def protocol(self) -> ScoringProtocol:
        """The sizes of everything asked."""
        return ScoringProtocol(
            latents=self.latents,
            explain=self.explain_examples,
            test=self.test_examples,
            radius=self.radius,
            quantiles=self.quantiles,
            hard_negatives=self.hard_negatives,
            from_quantile=self.from_quantile,
        )

    def numbers(self) -> tuple[Estimator, ...]:
        return estimators(self._params(), self.judge.graded)

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return (self.domain or next(iter(experiment.dataset.eval)),)

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        explainer = {} if self.explainer is None else {"explainer": self.explainer.identity(roots)}
        return {"judge": self.judge.identity(roots), "prompts": PROMPTS, **explainer}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if len(experiment.sites) > 1:
            return (
                f"autointerp scores one SAE, and this spec has {len(experiment.sites)}: give each a spec with `layer:`",
            )
        if self.domain is not None and self.domain not in experiment.dataset.eval:
            return (f"autointerp: there is no domain {self.domain!r}; there is {', '.join(experiment.dataset.eval)}",)
        return ()

    def preview(self, experiment: ExperimentView, roots: Roots) -> str | None:
        if isinstance(self.judge, RuleJudge):
            return None
        latents = self.latents * len(self.measured_at())
        requests = latents * requests_per_latent(self.test_examples)
        prompt, reply = latents * self._prompt_tokens(), requests * _REPLY
        cost = f", about {self.prices.of(prompt, reply):.4g} in the unit of `prices`" if self.prices else ""
        limit = f" (limit {self.max_requests:,})" if self.max_requests is not None else ""
        return (
            f"at most {requests:,} requests to {self.judges}{limit}, about {prompt:,.0f} tokens read and "
            f"{reply:,.0f} written{cost}"
        )

    def _prompt_tokens(self) -> float:
        """Roughly, of all prompts about one latent."""
        windows = self.explain_examples + 2 * self.test_examples + 4 * (self.test_examples // 3)
        words = windows * self.protocol.window * _CHARACTERS + requests_per_latent(self.test_examples) * _INSTRUCTIONS
        return words / CHARACTERS_PER_TOKEN

    def _params(self) -> dict[str, Json]:
        """The judge, and whatever of the protocol differs from the default and changes what a score means."""
        protocol = {
            name: getattr(self, name)
            for name in ("explain_examples", "radius", "quantiles", "from_quantile", "hard_negatives")
            if getattr(self, name) != type(self).model_fields[name].default
        }
        explainer = {} if self.explainer is None else {"explainer": self.explainer.label}
        return {"judge": self.judge.label, **explainer, **protocol}
