"""Steering along a flow graph: does generated text move into a domain, and at what price? (Feature Flow, §4.3), version 3.

`activate`: h_l ← h_l + Σ s_l · v on every token, for the latents v of the seeds' paths (`fold` scales decoder rows). s_l is
the strength at the seed's layer alone (`single`), at every layer of the path (`constant`), s · exp(α (l − l₀))
(`exponential`; s · exp(α l) with `counted_from: model`, as in the paper), or goes from s to 1 over the path (`linear`).
`deactivate`: h ← h + (r − 1) a v, the strengths being r, for the seeds (`single`) or all latents of their graphs, MLPs and
attention included (`constant`). Prompts then come from the target domain itself.

Controls: `random` puts a random latent of the same site in the place of every seed, `random_constant`, `random_linear` and
`random_exponential` one in the place of every latent of the paths (`deactivate`: graphs) under the same schedule. They are
drawn among the latents that fire (`deactivate`: in the target domain), without the seeds and their paths.

Where no path has more than one latent, because no match passes `flow.thresholds`, cumulative schedules would repeat what a
single layer does: their numbers are null.

Every second document of each domain trains a naive Bayes classifier of domains on token counts and chooses the seeds; the
others give the prompts, the classifier's accuracy on texts of the generated length, and the loss.

=================  ==================================================================  ===================================
number             formula                                                             better
=================  ==================================================================  ===================================
`base_rate`        share of texts classified as the target domain, without steering    (a reference)
`rate`             the same with steering                                              higher (`deactivate`: lower)
`shift`            `rate` − `base_rate`                                                higher (`deactivate`: lower)
`loss_increase`    CE' − CE of the prompts' documents under steering                   lower
`text_loss`        CE of the generated texts under the untouched model                 lower
`rate_at_cost`     `rate` where `loss_increase` is a given cost c                      higher (`deactivate`: lower)
`gain_at_cost`     `rate_at_cost` − that of the schedule `single`                      higher (`deactivate`: lower)
`behaviour`        a judge's 0–5 for the theme, divided by 5                           higher (`deactivate`: lower)
`coherence`        a judge's 0–5 for coherence, divided by 5                           higher
`total`            behaviour × coherence (`deactivate`: (1 − behaviour) × coherence)   higher
=================  ==================================================================  ===================================

`rate_at_cost` puts schedules beside each other at one price, whatever strength each needs for it: with strengths in the order
of their loss increases x₁ ≤ x₂ ≤ …, rates y, and xᵢ ≤ c ≤ xᵢ₊₁, it is yᵢ + (yᵢ₊₁ − yᵢ)(c − xᵢ)/(xᵢ₊₁ − xᵢ), and null where no
strength costs as much or none as little.

`accuracy` is the classifier's share of correct held-out texts. Units are prompts (documents).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import truediv
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import Judge
from latentbench.core.spec_model import Json, without_default
from latentbench.flow.metrics import FlowStudy
from latentbench.flow.options import CountedFrom, Fold, Growth, Latent, Span, unknown_latents, unreached_span
from latentbench.flow.topology import block_of, residual_sites
from latentbench.metrics.base import Display, Estimator
from latentbench.statistics.arrays import Array
from latentbench.study.context import Longest

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

Schedule = Literal["single", Growth, "random", "random_constant", "random_linear", "random_exponential"]


def rate_at(cost: float, base: Array, n: Array, texts: Array, *settings: Array) -> Array:
    """`rate_at_cost` from sums: `settings` are in turn the texts in the target domain and the loss of each strength."""
    import numpy as np

    rates, losses = np.stack(settings[0::2]) / texts, (np.stack(settings[1::2]) - base) / n
    order = np.argsort(losses, axis=0, kind="stable")
    x, y = np.take_along_axis(losses, order, 0), np.take_along_axis(rates, order, 0)
    found: Array = np.full_like(x[0], np.nan)
    for low, high, start, end in zip(x, x[1:], y, y[1:], strict=False):
        between = (cost - low) / np.where(high > low, high - low, 1)
        found = np.where((low <= cost) & (cost <= high), start + (end - start) * between, found)
    return found


def gain_at(cost: float, base: Array, n: Array, texts: Array, *settings: Array) -> Array:
    """`gain_at_cost` from sums: `settings` as in `rate_at`, those of `single` behind those of the schedule."""
    half = len(settings) // 2
    own, single = (rate_at(cost, base, n, texts, *part) for part in (settings[:half], settings[half:]))
    return own - single


def _shift(steered: Array, base: Array, n: Array) -> Array:
    return (steered - base) / n


class FlowSteering(FlowStudy):
    """How far steering moves generated text into a domain."""

    version: ClassVar[int] = 3
    implementation: ClassVar[str] = "latentbench.flow.steering_study:measure_steering"
    displays: ClassVar[Mapping[str, Display]] = {
        "flow_steering.shift": Display("Steered", 170),
        "flow_steering.rate_at_cost": Display("Steered at cost", 180),
        "flow_steering.gain_at_cost": Display("Gain at cost"),
    }

    metric: Literal["flow_steering"] = "flow_steering"
    target: str
    """The evaluation domain that text shall move into, or out of."""
    start: str | None = None
    """The evaluation domain whose documents begin the texts; default the first other one, or `target` to deactivate."""
    action: Literal["activate", "deactivate"] = "activate"
    """Whether the theme is written or removed."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Decoder block whose latents are seeds; default the middle of the residual sites."""
    seeds: tuple[Latent, ...] = ()
    """Seed latents, e.g. `12:4111`; default the `select` most telling ones."""
    select: PositiveInt = 3
    """Seeds chosen where none are given: latents with the largest positive difference between the shares of tokens on which
    they fire in the target domain and in all others, among those whose path (or graph) has two latents or more; where
    there is none of that kind, the largest difference alone. The same seeds for every schedule."""
    span: Span | None = None
    """First and last decoder block that is steered; default the whole path."""
    schedules: Annotated[tuple[Schedule, ...], Field(min_length=1)] = ("single", "constant")
    """How strength depends on the layer; one set of numbers each."""
    strengths: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0,)
    """s (`activate`) or r (`deactivate`); one set of numbers each."""
    costs: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Loss increases in nats per token at which schedules are compared: `rate_at_cost`, between the strengths."""
    alpha: float = -0.05
    """Of the exponential schedule; the paper's value."""
    counted_from: CountedFrom = "path"
    """Where the exponential schedule counts layers from: the path's first one, which then gets s, or as in the paper the
    model's first one, so that a strength means less the later a path begins."""
    fold: Fold = "activation"
    """What decoder rows are multiplied by: nothing, thresholds (the paper, for JumpReLU), or mean activations."""
    prompts: PositiveInt = 32
    """Texts to generate per setting."""
    prompt_tokens: PositiveInt = 8
    """Tokens of a document that begin a text, BOS included."""
    opening: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """What begins all texts instead of documents, such as the paper's "I think ". Documents still give the loss."""
    tokens: PositiveInt = 36
    """Tokens generated; the paper's 36 (96 to deactivate)."""
    temperature: Annotated[float, Field(gt=0)] = 1.27
    """Of sampling; the paper's value."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Of nucleus sampling; the paper's value."""
    judge: Annotated[Judge, Choice("judges", "adapter")] | None = None
    """A chat model that rates texts as well."""
    theme: str | None = None
    """What the judge is told the theme is; default the name of the target domain."""

    @model_validator(mode="after")
    def _fits(self) -> Any:
        wrong = [schedule for schedule in self.schedules if "linear" in schedule or "exponential" in schedule]
        if wrong and self.action == "deactivate":
            raise ValueError(f"action: deactivate has no schedule {', '.join(wrong)}")
        if self.costs and len(set(self.strengths)) < 2:
            raise ValueError("costs lie between strengths; state two strengths or more")
        if self.counted_from == "model" and not any("exponential" in schedule for schedule in self.schedules):
            raise ValueError("counted_from: only exponential schedules count layers; name one, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_no_costs(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """These are newer than records, whose keys stay."""
        return without_default(type(self), ("costs", "counted_from", "opening"), made(self))

    def beginning(self, experiment: ExperimentView) -> str:
        """The domain whose documents begin the texts."""
        if self.start is not None or self.action == "deactivate":
            return self.start or self.target
        return next((name for name in experiment.dataset.eval if name != self.target), self.target)

    def longest_answer(self, roots: Roots) -> Longest:
        return Longest(self.prompt_tokens + self.tokens - 1, "tokens")  # the prompt's first token is the room asked for

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        domains = list(experiment.dataset.eval)
        unknown = [name for name in (self.target, self.start) if name is not None and name not in domains]
        wrong = [f"flow_steering: there is no evaluation domain {name!r}" for name in unknown]
        if len(domains) < 2:
            wrong.append("flow_steering: telling domains apart needs two evaluation domains or more")
        if self.judge is not None and type(self.judge).chat is Judge.chat:
            wrong.append(f"flow_steering: the judge {self.judge.adapter!r} rates no texts; it needs a chat model")
        wrong += [f"flow_steering: {message}" for message in self._misplaced(experiment)]
        return (*super().problems_in(experiment, roots), *wrong)

    def _misplaced(self, experiment: ExperimentView) -> Iterator[str]:
        """Latents, layers and blocks that this experiment does not have."""
        blocks = [block_of(site) for site in residual_sites(experiment.sites)]
        if self.layer is not None and self.layer not in blocks:
            yield f"layer {self.layer}: no SAE reads the residual stream behind this block, but behind {blocks}"
        yield from unknown_latents(experiment, self.seeds)
        yield from unreached_span(experiment, self.span)

    @property
    def folds(self) -> frozenset[str]:
        return frozenset({self.fold} if self.action == "activate" else ())

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        judge = None if self.judge is None else self.judge.identity(roots)
        return {"judge": judge, "texts": self.fold_texts(experiment, roots)}

    def preview(self, experiment: ExperimentView, roots: Roots) -> str | None:
        if self.judge is None:
            return None
        settings = 1 + len(set(self.schedules)) * len(set(self.strengths))
        return f"{2 * self.prompts * settings:,} requests to the judge {self.judge.label}"

    def settings(self) -> tuple[tuple[Schedule, float], ...]:
        """Every schedule with every strength."""
        return tuple((schedule, s) for schedule in dict.fromkeys(self.schedules) for s in dict.fromkeys(self.strengths))

    def numbers(self) -> tuple[Estimator, ...]:
        base = self._number("base_rate", "fraction", None, truediv, ("base.target", "texts"), {})
        each = (number for schedule, strength in self.settings() for number in self._of(schedule, strength))
        schedules = tuple(dict.fromkeys(self.schedules))
        others = tuple(schedule for schedule in schedules if schedule != "single" and "single" in schedules)
        rates = (self._at("rate_at_cost", rate_at, cost, schedule) for cost in self.costs for schedule in schedules)
        gains = (
            self._at("gain_at_cost", gain_at, cost, schedule, "single") for cost in self.costs for schedule in others
        )
        return (base, *each, *rates, *gains)

    def _of(self, schedule: Schedule, strength: float) -> tuple[Estimator, ...]:
        name, params = setting_name(schedule, strength), {"schedule": schedule, "strength": strength}
        more = self.action == "activate"
        plain = (
            self._number("rate", "fraction", more, truediv, (f"{name}.target", "texts"), params),
            self._number("shift", "fraction", more, _shift, (f"{name}.target", "base.target", "texts"), params),
            self._number(
                "loss_increase", "nats/token", False, _shift, (f"{name}.loss", "base.loss", "predictions"), params
            ),
            self._number(
                "text_loss", "nats/token", False, truediv, (f"{name}.text_loss", f"{name}.text_tokens"), params
            ),
        )
        if self.judge is None:
            return plain
        judged = {**params, "judge": self.judge.label}
        rated = (("behaviour", more), ("coherence", True), ("total", True))
        inputs = {rating: (f"{name}.{rating}", f"{name}.judged") for rating, _ in rated}
        return (*plain, *(self._number(r, "score", better, truediv, inputs[r], judged) for r, better in rated))

    def _at(self, name: str, formula: Callable[..., Array], cost: float, *schedules: Schedule) -> Estimator:
        settings = [
            setting_name(schedule, strength) for schedule in schedules for strength in dict.fromkeys(self.strengths)
        ]
        steered = (f"{setting}.{statistic}" for setting in settings for statistic in ("target", "loss"))
        inputs = ("base.loss", "predictions", "texts", *steered)
        params = {"schedule": schedules[0], "cost": cost}
        number = self._number(name, "fraction", self.action == "activate", partial(formula, cost), inputs, params)
        return replace(number, undefined=f"no two strengths cost less and more than {cost:g} nats per token")

    def _number(
        self, name: str, unit: str, better: bool | None, formula: Any, inputs: tuple[str, ...], params: dict[str, Any]
    ) -> Estimator:
        told = {"target": self.target, "action": self.action, **params}
        told |= without_default(
            type(self), ("counted_from", "opening"), {"opening": self.opening, "counted_from": self.counted_from}
        )
        names = tuple(f"flow_steering.{statistic}" for statistic in inputs)
        return Estimator(f"flow_steering.{name}", 3, unit, better, names, formula, params=told)


def setting_name(schedule: Schedule, strength: float) -> str:
    """As statistics of a setting are called."""
    return f"{schedule}={strength:g}"


def cumulative(schedule: Schedule) -> bool:
    """Whether it acts on more than the seeds' own layers."""
    return schedule not in ("single", "random")


def growth_of(schedule: Schedule) -> Growth:
    """How strength depends on the layer of a path, for the seeds' and the random ones' alike."""
    growths: tuple[Growth, ...] = ("constant", "linear", "exponential")
    return next(growth for growth in growths if schedule.endswith(growth))
