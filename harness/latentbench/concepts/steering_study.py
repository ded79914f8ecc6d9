"""Measures `concept_steering`: texts about each concept at the dose chosen for it, without steering, and under a random direction.

The formulas stand in steering_metric.py, the scores of a text in scores.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentbench.concepts.kit import ConceptKit
from latentbench.concepts.making import random_direction
from latentbench.concepts.scores import (
    ConceptClassifier,
    cut,
    distinct_pairs,
    fluency,
    harmonic_mean,
    judged,
    mean_losses,
    people_loss,
)
from latentbench.concepts.steering_metric import NAME, ConceptSteering, difference
from latentbench.concepts.texts import ConceptTexts, concept_texts
from latentbench.core.hashing import digest, seed_of
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import prompt_ids, room_behind
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Untouched
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.metrics.base import ratio
from latentbench.metrics.value import Interval, MetricValue
from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import document_interval
from latentbench.steering.build import width_of
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Findings

_PEOPLE = 48
"""Texts of people with the concept whose mean loss is ℓ₀."""
_SHOWN = 3
"""Texts of each concept that pages show."""
_VERSION = 1
"""Raised when the same intervention and openings give other texts."""
Scores = Mapping[str, Array]
"""By name, one number per text."""


@dataclass(frozen=True)
class WrittenTexts:
    """What was written after some openings."""

    openings: tuple[str, ...]
    ids: list[list[int]]
    """Of the written tokens, the end token included."""
    texts: list[str]
    losses: Array
    """[texts] mean negative log-likelihood under the model without steering."""

    def part(self, first: int, count: int) -> WrittenTexts:
        """Some of them."""
        some = slice(first, first + count)
        return WrittenTexts(self.openings[some], self.ids[some], self.texts[some], self.losses[some])

    def content(self) -> Content:
        """For the store."""
        return Content(meta={"ids": self.ids, "texts": self.texts, "losses": self.losses.tolist()})

    @staticmethod
    def of(content: Content, openings: Sequence[str]) -> WrittenTexts:
        """From the store."""
        meta = content.meta
        return WrittenTexts(tuple(openings), meta["ids"], meta["texts"], np.array(meta["losses"], dtype=np.float64))


@dataclass(frozen=True)
class _Writing:
    """How texts are written, the same for every way, concept and seed."""

    study: ConceptSteering
    context: StageContext

    def texts(
        self, intervention: Intervention, openings: Sequence[str], leading: str = ""
    ) -> tuple[WrittenTexts, Receipt]:
        """What is written under an intervention behind `leading` and each opening; the random numbers are always the same."""
        lm, layout = self.context.model(), Layout()
        prompts = [f"{leading}{opening}" for opening in openings]
        draw = torch.Generator(lm.device).manual_seed(seed_of(NAME, list(openings)))
        sampling = Sampling(self.study.tokens, self.study.temperature)
        with intervention.applied(lm, layout) as receipt:
            found = answers(lm, prompts, sampling, generator=draw, layout=layout)
        ids = [answer.ids for answer in found]
        losses = mean_losses(lm, openings, ids)
        return WrittenTexts(tuple(openings), ids, [answer.text for answer in found], losses), receipt

    def shared(self, intervention: Intervention, openings: Sequence[str], leading: str = "") -> WrittenTexts:
        """The same, kept for all rows that need it."""
        asked: Json = {
            "intervention": intervention.identity,
            "openings": list(openings),
            "leading": leading,
            "tokens": self.study.tokens,
            "temperature": self.study.temperature,
            "version": _VERSION,
        }
        made = self.context.shared(
            "concept_texts", asked, lambda: self.texts(intervention, openings, leading)[0].content()
        )
        return WrittenTexts.of(made, openings)


@dataclass(frozen=True)
class _Scoring:
    """What gives the texts of one concept their scores."""

    study: ConceptSteering
    context: StageContext
    about: str
    classifier: ConceptClassifier
    accuracy: float
    people: float
    """ℓ₀."""

    def scores(self, written: WrittenTexts) -> Scores:
        """Every score of every text."""
        concept = 2 * self.classifier.probabilities(written.texts)
        fluent = fluency(written.losses, self.people, distinct_pairs(written.ids))
        found = {"concept": concept, "fluency": fluent, "loss": written.losses, "score": harmonic_mean(concept, fluent)}
        if (judge := self.study.judge) is not None:
            found |= judged(written.openings, written.texts, self.about, judge, self.context)
        return found

    @property
    def deciding(self) -> str:
        """The score that chooses the dose."""
        return "score" if self.study.judge is None else "judged_score"


def measure_concept_steering(study: ConceptSteering, context: StageContext) -> Findings:
    """Statistics per concept, the numbers of each concept, and some texts of each."""
    kit: ConceptKit = context.subject()
    writing, openings = _Writing(study, context), (*study.choosing, *study.measuring)
    lm, leading = context.model(), {kit.leading(name) for name in kit.parts}
    prompts = prompt_ids(lm, [first + opening for first in sorted(leading) for opening in openings])
    room_behind(lm.model, list(map(len, prompts)), study.tokens, least=study.tokens)
    texts = concept_texts(kit.options, context.roots)
    base = writing.shared(Untouched(), study.measuring)
    found: dict[str, _Measured] = {}
    context.progress(0, len(texts), "concepts")
    for done, (name, own) in enumerate(texts.items()):
        scoring = _scoring(study, context, kit.options.about(name), own)
        found[name] = _measured(writing, scoring, kit, name, base)
        context.progress(done + 1, len(texts), "concepts")
    return _findings(kit, found)


def _scoring(study: ConceptSteering, context: StageContext, about: str, texts: ConceptTexts) -> _Scoring:
    lm = context.model()
    classifier = ConceptClassifier.trained(cut(texts.judge, lm, study.tokens))
    accuracy = classifier.accuracy(cut(texts.test, lm, study.tokens))
    human = texts.test.positive[:_PEOPLE]
    asked: Json = {"texts": digest("texts", list(human)), "tokens": study.tokens, "version": _VERSION}
    stored = context.shared("people_loss", asked, lambda: Content(meta={"loss": people_loss(lm, human, study.tokens)}))
    return _Scoring(study, context, about, classifier, accuracy, float(stored.meta["loss"]))


@dataclass(frozen=True)
class _Measured:
    """What was found for one concept."""

    own: Scores
    base: Scores
    random: Scores | None
    """None where there is no dose."""
    dose: float | None
    accuracy: float
    details: Json
    receipt: Receipt

    @property
    def sides(self) -> dict[str, Array]:
        """[texts] by statistic."""
        found = dict(self.own)
        for side, scores in (("base", self.base), ("random", self.random or {})):
            for prefix in ("", "judged_"):
                if f"{prefix}score" in scores:
                    found[f"{prefix}{side}_score"] = scores[f"{prefix}score"]
        return found


def _measured(writing: _Writing, scoring: _Scoring, kit: ConceptKit, name: str, base: WrittenTexts) -> _Measured:
    study, leading = writing.study, kit.leading(name)
    dose, curve = _chosen(writing, scoring, kit, name)
    intervention, receipt = kit.at(name, dose), Receipt()
    if isinstance(intervention, Untouched):
        written = writing.shared(intervention, study.measuring, leading)  # a prompt that is the same for all seeds
    else:
        written, receipt = writing.texts(intervention, study.measuring, leading)
    shown: dict[str, Json] = {"without": base.texts[:_SHOWN], "steered": written.texts[:_SHOWN]}
    random = None
    if dose is not None:
        # One direction for each concept, the same in all rows: equal doses are then compared with the same texts.
        width = width_of(writing.context.model().model)
        direction = random_direction(width, seed_of(NAME, "control", name))
        control = writing.shared(kit.like(name, direction, dose), study.measuring)
        random, shown["random"] = scoring.scores(control), control.texts[:_SHOWN]
    details = {"dose": dose, "selection": curve, "openings": list(study.measuring[:_SHOWN]), "texts": shown}
    details["receipt"] = vars(receipt)
    return _Measured(scoring.scores(written), scoring.scores(base), random, dose, scoring.accuracy, details, receipt)


def _chosen(writing: _Writing, scoring: _Scoring, kit: ConceptKit, name: str) -> tuple[float | None, list[Json]]:
    """The dose with the best score on the openings that choose, the smaller one of equals, and the score at each."""
    study = writing.study
    settings = kit.settings(name, study.doses)
    if settings == (None,):
        return None, []
    curve = {}
    for dose in settings:
        assert dose is not None  # whatever has one dose has only doses
        written, _ = writing.texts(kit.at(name, dose), study.choosing, kit.leading(name))
        curve[dose] = float(scoring.scores(written)[scoring.deciding].mean())
    best = max(curve, key=lambda dose: (curve[dose], -dose))
    return best, [{"dose": dose, "score": score} for dose, score in curve.items()]


def _findings(kit: ConceptKit, found: Mapping[str, _Measured]) -> Findings:
    """Sums over concepts: each counts the mean over its texts."""
    names = dict.fromkeys(name for one in found.values() for name in one.sides)
    statistics = {f"{NAME}.{name}": np.array([one.sides[name].mean() for one in found.values()]) for name in names}
    statistics[f"{NAME}.concepts"] = np.ones(len(found))
    statistics[f"{NAME}.accuracy"] = np.array([one.accuracy for one in found.values()])
    reasons = {}
    if kit.options.dosed:
        statistics[f"{NAME}.dose"] = np.array([one.dose for one in found.values()])
    else:
        why = f"`way: {kit.options.way}` changes no hidden state, so it has no dose"
        reasons = {f"{NAME}.{name}": why for name in ("dose", "random_score", "judged_random_score")}
    values = tuple(value for name, one in found.items() for value in _of_concept(name, one))
    receipt = sum((one.receipt for one in found.values()), Receipt())
    details: dict[str, Json] = {
        "concepts": {name: one.details for name, one in found.items()},
        "receipt": vars(receipt),
    }
    return Findings({NAME: statistics}, values, details, reasons=reasons, warnings=tuple(_warnings(found)))


def _of_concept(name: str, one: _Measured) -> Iterable[MetricValue]:
    """Score and gain of one concept, over its texts."""
    texts = np.ones(len(one.own["score"]))
    columns = {"concept_score": (ratio, (one.own["score"], texts))}
    gains = {"concept_gain": (difference, (one.own["score"], one.base["score"], texts))}
    for number, (formula, inputs) in (columns | gains).items():
        stacked = np.stack(inputs, 1)
        bounds = document_interval(formula, stacked, units="texts")
        yield MetricValue(
            id=f"{NAME}.{number}",
            version=1,
            domain=NAME,
            value=float(formula(*stacked.sum(0))),
            unit="score",
            higher_is_better=True,
            n=len(texts),
            ci=Interval(**bounds._asdict()) if bounds else None,
            params={"concept": name, "by": "classifier"},
        )


def _warnings(found: Mapping[str, _Measured]) -> Iterable[str]:
    weak = [name for name, one in found.items() if one.accuracy < 0.75]
    if weak:
        yield f"{NAME}: the classifier tells held-out texts of {', '.join(weak)} right in less than three of four cases"
