"""`concept_steering`: do texts turn to a concept, and are they still texts? The steering task of AxBench (arXiv 2501.17148).

For each concept the model goes on from short neutral openings. On the first `selection` of them the dose is chosen that has the
best score, the smaller one of equals; on the `prompts` that follow everything is measured, at that dose, without steering, and under
a random direction of the same dose. The random numbers of sampling are the same for all of them.

Each text has scores from 0 to 2:

=============  ==========================================================================================================
score          formula
=============  ==========================================================================================================
`concept`      2 · P(concept | text), by logistic regression on TF-IDF of words and pairs of words
`fluency`      2 · min(1, exp(ℓ₀ − ℓ)) · u: ℓ is the text's mean negative log-likelihood under the model without steering, ℓ₀ the mean
               ℓ of as many tokens of held-out texts that people wrote about the concept, behind their first four, so that the
               ratio is one of perplexities; u is the share of distinct pairs of neighbouring tokens, because a loop has a low
               perplexity and is no text
`score`        their harmonic mean 2 c f / (c + f), 0 where one is 0
=============  ==========================================================================================================

The classifier is trained on texts that no way learns from, cut to `tokens` tokens; `classifier_accuracy` is its share of held-out
texts of that length given their own label, both labels weighing alike. With a `judge` the texts are rated by it as well, 0 to 2
for the concept, the instruction (does the text follow from its opening?) and fluency, and the harmonic mean of the three chooses
the dose.

======================  =================================================================================  ===============
number                  formula, over concepts, each the mean over its texts                                better
======================  =================================================================================  ===============
`score`                 mean score                                                                         higher
`concept`, `fluency`    mean concept and fluency scores                                                    higher
`gain`                  score − score without steering, on the same openings                               higher
`over_random`           score − score under a random direction of the same dose                            higher
`base_score`            mean score without steering                                                        (a reference)
`random_score`          mean score under the random direction                                              (a reference)
`loss`                  mean of ℓ, in nats per token                                                       lower
`dose`                  mean of the chosen doses ‖Δ‖/‖h‖                                                   –
`classifier_accuracy`   see above                                                                          –
======================  =================================================================================  ===============

Concepts are the independent units; `concept_score` and `concept_gain` are those of one concept, with intervals over its texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.concepts.openings import OPENINGS
from latentbench.core.plugins import Choice
from latentbench.core.protocols import Judge
from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator, ratio
from latentbench.statistics.arrays import Array
from latentbench.study.context import Longest
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

NAME = "concept_steering"
"""The metric's name, with which the names of its statistics begin, and the domain that they stand in."""
Dose = Annotated[float, Field(gt=0, le=10)]
Opening = Annotated[str, Field(min_length=1, max_length=2000)]


def difference(total: Array, other: Array, n: Array) -> Array:
    """The formula of a mean difference."""
    return (total - other) / n


class ConceptSteering(Study):
    """How far texts turn to concepts, and whether they stay fluent, against no steering and random directions."""

    needs: ClassVar[frozenset[str]] = frozenset({"concepts"})
    implementation: ClassVar[str] = "latentbench.concepts.steering_study:measure_concept_steering"
    displays: ClassVar[Mapping[str, Display]] = {
        "concept_steering.score": Display("Score 0–2", 171),
        "concept_steering.gain": Display("Gain over none", 172),
        "concept_steering.over_random": Display("Over random", 173),
        "concept_steering.concept": Display("Concept 0–2", 174, against="concept_steering.fluency"),
        "concept_steering.fluency": Display("Fluency 0–2", 175),
        "concept_steering.classifier_accuracy": Display("Classifier"),
        "concept_steering.dose": Display("Chosen ‖Δ‖/‖h‖"),
    }

    metric: Literal["concept_steering"] = "concept_steering"
    doses: Annotated[tuple[Dose, ...], Field(min_length=1, max_length=100)] = (0.1, 0.2, 0.4, 0.8)
    """Strengths ‖Δ‖/‖h‖ to choose among, for each concept by itself; adapters may also stay as they were trained."""
    selection: PositiveInt = 8
    """Openings on which the dose is chosen."""
    prompts: PositiveInt = 16
    """Openings on which everything is measured."""
    openings: tuple[Opening, ...] = ()
    """Beginnings of texts; default forty neutral ones."""
    tokens: Annotated[int, Field(ge=4)] = 32
    """Longest text, in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling."""
    judge: Annotated[Judge, Choice("judges", "adapter")] | None = None
    """A chat model that rates the texts as well, and chooses the dose."""

    @model_validator(mode="after")
    def _enough(self) -> Any:
        needed, there = self.selection + self.prompts, len(self.given)
        if there < needed:
            raise ValueError(
                f"selection and prompts need {needed} openings, there are {there}; state more under `openings`"
            )
        if len(set(self.given)) < there:
            raise ValueError("openings: the same one stands there twice, and those that choose doses must not measure")
        return self

    @property
    def given(self) -> tuple[str, ...]:
        """All openings there are."""
        return self.openings or OPENINGS

    @property
    def choosing(self) -> tuple[str, ...]:
        """The openings on which the dose is chosen."""
        return self.given[: self.selection]

    @property
    def measuring(self) -> tuple[str, ...]:
        """The openings on which everything is measured."""
        return self.given[self.selection : self.selection + self.prompts]

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        judge = None if self.judge is None else self.judge.identity(roots)
        return {"openings": [*self.choosing, *self.measuring], "judge": judge}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if self.judge is not None and type(self.judge).chat is Judge.chat:
            return (f"{NAME}: the judge {self.judge.adapter!r} rates no texts; it needs a chat model",)
        return ()

    def longest_answer(self, roots: Roots) -> Longest:
        return Longest(self.tokens, "tokens")

    def preview(self, experiment: ExperimentView, roots: Roots) -> str | None:
        concepts = experiment.concepts
        if self.judge is None or concepts is None:
            return None
        texts = self.selection * (len(set(self.doses)) if concepts.dosed else 1) + 3 * self.prompts
        return f"{3 * texts * len(concepts.chosen):,} requests to the judge {self.judge.label}"

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        concepts = experiment.concepts
        shared = {} if concepts is None else concepts.shared_identity(roots)
        how = {"openings": list(self.measuring), "tokens": self.tokens, "temperature": self.temperature}
        return {NAME: {**shared, **how}}

    def numbers(self) -> tuple[Estimator, ...]:
        plain = (
            _mean("fluency", "score", True, "fluency", {"by": "perplexity"}),
            _mean("loss", "nats/token", False, "loss", {}),
            _mean("dose", "ratio", None, "dose", {}),
            _mean("classifier_accuracy", "fraction", None, "accuracy", {}),
        )
        offline = (*_scored("", {"by": "classifier"}), *plain)
        if self.judge is None:
            return offline
        judged = {"judge": self.judge.label}
        more = (_mean(name, "score", True, f"judged_{name}", judged) for name in ("instruction", "fluency"))
        return (*offline, *_scored("judged_", judged), *more)


def _scored(prefix: str, params: Mapping[str, Json]) -> tuple[Estimator, ...]:
    """What is said of scores, whoever gave them."""
    own, base, random = (f"{prefix}{side}score" for side in ("", "base_", "random_"))
    return (
        _mean("score", "score", True, own, params),
        _mean("concept", "score", True, f"{prefix}concept", params),
        _difference("gain", own, base, params),
        _difference("over_random", own, random, params),
        _mean("base_score", "score", None, base, params),
        _mean("random_score", "score", None, random, params),
    )


def _mean(name: str, unit: str, better: bool | None, statistic: str, params: Mapping[str, Json]) -> Estimator:
    inputs = (f"{NAME}.{statistic}", f"{NAME}.concepts")
    return Estimator(f"{NAME}.{name}", 1, unit, better, inputs, ratio, units="concepts", params=params)


def _difference(name: str, own: str, other: str, params: Mapping[str, Json]) -> Estimator:
    inputs = (f"{NAME}.{own}", f"{NAME}.{other}", f"{NAME}.concepts")
    return Estimator(f"{NAME}.{name}", 1, "score", True, inputs, difference, units="concepts", params=params)
