"""The metric `scr` (erasure.py): what a probe that learnt a spurious cue regains when the latents of the cue are ablated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.text_digests import folded_digest_of
from latentbench.latents.erasing import Erasable, Reader, erasable, latents_written, left_out, random_latents, too_wide
from latentbench.latents.erasure import SpuriousCorrelationRemoval
from latentbench.latents.label_probes import LEAST_TEXTS, labels_of, place_of
from latentbench.latents.probing import Labels, Probe
from latentbench.metrics.values import null_value
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.study.context import StageContext

TextLabels = Mapping[int, tuple[str, str]]
"""Text and label by the digest of the text with its white space folded."""


@dataclass(frozen=True)
class CrossedPair:
    """Texts with two labels of two values each: of every combination equally many in training, and equally many in the test."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[Labels, Labels]
    """[texts] whether it has the second value of the concept, and of the cue."""
    test: Labels
    """[texts] whether it is tested on."""

    @staticmethod
    def of(name: str, concept: TextLabels, cue: TextLabels, study: SpuriousCorrelationRemoval) -> CrossedPair | str:
        """The pair of two sets that share texts, or why it is left out."""
        values = [sorted({label for _, label in one.values()}) for one in (concept, cue)]
        if [len(both) for both in values] != [2, 2]:
            return f"{name}: {' and '.join(str(len(both)) for both in values)} values of the labels"
        shared = sorted((concept[key][0] for key in concept.keys() & cue.keys()), key=place_of)
        marks = [
            [given[folded_digest_of(t)][1] == both[1] for t in shared]
            for given, both in zip((concept, cue), values, strict=True)
        ]
        cells = 2 * np.array(marks[0], dtype=int) + np.array(marks[1], dtype=int)
        test = np.array([place_of(text) < study.test_share for text in shared], dtype=bool)
        kept = _balanced(cells, test, study)
        if isinstance(kept, int):
            return f"{name}: {kept} texts of a combination of labels"
        texts = tuple(shared[number] for number in kept)
        return CrossedPair(name, texts, (cells[kept] >= 2, cells[kept] % 2 == 1), test[kept])

    @property
    def train(self) -> Labels:
        """[texts] whether a probe may be trained on it."""
        found: Labels = ~self.test
        return found

    def coinciding(self, crossed: bool) -> Labels:
        """[texts] those of training on which the two labels say the same, or with `crossed` the opposite."""
        found: Labels = self.train & ((self.labels[0] == self.labels[1]) != crossed)
        return found

    @property
    def half(self) -> Labels:
        """[texts] half of the texts of training, of each combination: as many as coincide."""
        cells = 2 * self.labels[0].astype(int) + self.labels[1]
        found = np.zeros(len(cells), dtype=bool)
        for cell in range(4):
            (here,) = np.nonzero(self.train & (cells == cell))
            found[here[: len(here) // 2]] = True
        return found


def _balanced(cells: NDArray[np.int64], test: Labels, study: SpuriousCorrelationRemoval) -> NDArray[np.int64] | int:
    """Places of the texts that are kept, or how many there are of the rarest combination in a half, where these are too few."""
    kept: list[NDArray[np.int64]] = []
    for half, share in ((False, 1 - study.test_share), (True, study.test_share)):
        places = [np.flatnonzero((test == half) & (cells == cell)) for cell in range(4)]
        least = min(map(len, places))
        if least < LEAST_TEXTS:
            return least
        most = max(LEAST_TEXTS, round(share * study.texts / 4))
        kept += [one[: min(least, most)] for one in places]
    return np.sort(np.concatenate(kept))


@dataclass(frozen=True)
class CrossedProbes:
    """The probes of a pair, which no SAE has a part in."""

    biased: Mapping[tuple[int, bool], Probe]
    """By which label is wanted, and whether it coincides `crossed`."""
    oracle: Mapping[int, Probe]
    """By which label is wanted."""
    cue: Mapping[int, Probe]
    """By which label it is that is not wanted; trained on all texts of training."""


TASKS = tuple((wanted, crossed) for wanted in (0, 1) for crossed in (False, True))


def measure_scr(study: SpuriousCorrelationRemoval, context: StageContext) -> Findings:
    """The scores of every pair; nulls with the reason for an SAE that has no latents to ablate.

    Raises CellFailed where no pair can be used.
    """
    try:
        rows = latents_written(context.sae.to(context.device).eval())
    except InvalidInput as error:
        return Findings(values=tuple(null_value(number, study.place, str(error)) for number in study.numbers()))
    found, reasons, pairs = _pairs(study, context, rows)
    if not found:
        told = "; ".join(reasons[:3]) or "no set of `concepts` shares a text with one of `cues`"
        raise CellFailed(f"scr: none of {pairs} pairs can be used: {told}")
    statistics = {name: np.array([one[name] for one in found.values()]) for name in next(iter(found.values()))}
    warnings = left_out("scr", "pairs or tasks of them", reasons)
    return Findings(
        {study.place: statistics}, details={"pairs": found}, warnings=warnings, reasons=too_wide(study, len(rows))
    )


def _pairs(
    study: SpuriousCorrelationRemoval, context: StageContext, written: Tensor
) -> tuple[dict[str, dict[str, float]], list[str], int]:
    """Statistics by pair, what was left out, and how many pairs share texts."""
    found: dict[str, dict[str, float]] = {}
    reasons: list[str] = []
    given = shared_pairs(study, context)
    for number, (name, (concept, cue)) in enumerate(given.items()):
        context.progress(number, len(given), "pairs")
        pair = CrossedPair.of(name, concept, cue, study)
        made = pair if isinstance(pair, str) else _removed(pair, (concept, cue), study, context, written)
        if isinstance(made, str):
            reasons.append(made)
            continue
        statistics, why = made
        reasons += why
        if statistics:
            found[name] = statistics
    context.progress(len(given), len(given), "pairs")
    return found, reasons, len(given)


def shared_pairs(study: SpuriousCorrelationRemoval, context: StageContext) -> dict[str, tuple[TextLabels, TextLabels]]:
    """Every set of `concepts` with every one of `cues` that has texts of it, each two sets once."""
    concepts, cues = (
        {name: {folded_digest_of(text): (text, label) for text, label in labels_of(rows, data, None).items()}
         for name, rows in data.labelled(context.roots).items()}
        for data in study.data.values()
    )  # fmt: skip
    same = study.concepts == study.cues
    found: dict[str, tuple[TextLabels, TextLabels]] = {}
    for concept, texts in concepts.items():
        for cue, others in cues.items():
            again = texts == others or (same and f"{cue} × {concept}" in found)
            if texts.keys() & others.keys() and not again:
                found[f"{concept} × {cue}"] = texts, others
    return found


def _removed(
    pair: CrossedPair,
    given: tuple[TextLabels, TextLabels],
    study: SpuriousCorrelationRemoval,
    context: StageContext,
    written: Tensor,
) -> tuple[dict[str, float], list[str]] | str:
    """A pair's statistics, and the tasks that are left out; or why the pair is."""
    reader = Reader(study, context, study.concepts)
    tokens = reader.tokens_of(pair.texts)
    if min(counts := tokens.counts.tolist()) == 0:
        silent = {folded_digest_of(t) for t, count in zip(pair.texts, counts, strict=True) if not count}
        concept, cue = ({key: one[key] for key in one.keys() - silent} for one in given)
        again = CrossedPair.of(pair.name, concept, cue, study)
        return again if isinstance(again, str) else _removed(again, (concept, cue), study, context, written)
    texts = erasable(tokens, context.sae, written)
    probes = _probes(pair, texts, reader)
    rng = np.random.default_rng(context.seed("random latents", pair.name))
    return removal(texts, pair, probes, study, rng)


def _probes(pair: CrossedPair, texts: Erasable, reader: Reader) -> CrossedProbes:
    biased = [(pair.labels[wanted], pair.coinciding(crossed)) for wanted, crossed in TASKS]
    oracle = [(labels, pair.half) for labels in pair.labels]
    cue = [(labels, pair.train) for labels in pair.labels]
    found = reader.probes_of(pair.texts, [*biased, *oracle, *cue], texts.states)
    return CrossedProbes(
        dict(zip(TASKS, found[:4], strict=True)), dict(enumerate(found[4:6])), dict(enumerate(found[6:]))
    )


def removal(
    texts: Erasable,
    pair: CrossedPair,
    probes: CrossedProbes,
    study: SpuriousCorrelationRemoval,
    rng: np.random.Generator,
) -> tuple[dict[str, float], list[str]]:
    """Sums over the tasks of a pair, none where every task has nothing to remove; and the tasks that were left out."""
    found: dict[str, float] = {}
    reasons: list[str] = []
    for wanted, crossed in TASKS:
        task = _Task(texts, pair, probes, wanted, crossed)
        if task.gap < study.least_gap:
            which, how = ("concept", "cue")[wanted], "crossed" if crossed else "as they are"
            reasons.append(f"{pair.name}, {which} wanted, labels {how}: the cue costs {task.gap:.2f} of accuracy")
            continue
        for name, value in _statistics(task, study, rng).items():
            found[name] = found.get(name, 0.0) + value
    return found, reasons


@dataclass(frozen=True)
class _Task:
    """One label wanted, the other spurious, and one way in which they coincided in training."""

    texts: Erasable
    pair: CrossedPair
    probes: CrossedProbes
    wanted: int
    crossed: bool

    @property
    def biased(self) -> Probe:
        """The probe that learnt the cue."""
        return self.probes.biased[self.wanted, self.crossed]

    @property
    def cue(self) -> Probe:
        """Of the label that is not wanted."""
        return self.probes.cue[1 - self.wanted]

    @cached_property
    def base(self) -> float:
        """A_base"""
        return self._accuracy(self.biased.scores(self.texts.states[self.pair.test]))

    @cached_property
    def oracle(self) -> float:
        """A_oracle"""
        return self._accuracy(self.probes.oracle[self.wanted].scores(self.texts.states[self.pair.test]))

    @property
    def gap(self) -> float:
        """What the cue costs."""
        return self.oracle - self.base

    @property
    def order(self) -> NDArray[np.int64]:
        """Latents, those of the cue first."""
        return self.texts.strongest(self.cue, self.pair.labels[1 - self.wanted], self.pair.train)

    def score(self, ablated: NDArray[np.int64]) -> float:
        """The share of the gap that ablating latents closes."""
        return self._regained(*self.texts.scores([self.biased], self.pair.test, ablated))

    def score_without_direction(self) -> float:
        """The share that setting the cue's direction to its mean closes."""
        return self._regained(*self.texts.scores_without(self.cue, [self.biased], self.pair.test, self.pair.train))

    def _regained(self, scores: Array) -> float:
        return (self._accuracy(scores) - self.base) / self.gap

    def _accuracy(self, scores: Array) -> float:
        return float(((scores > 0) == self.pair.labels[self.wanted][self.pair.test]).mean())


def _statistics(task: _Task, study: SpuriousCorrelationRemoval, rng: np.random.Generator) -> dict[str, float]:
    order, firing = task.order, task.texts.firing(task.pair.train)
    found = {"count": 1.0, "base_accuracy": task.base, "oracle_accuracy": task.oracle}
    made = {study.statistic(name): value for name, value in found.items()}
    made[study.statistic("direction_score")] = task.score_without_direction()
    for n in study.numbers_of_latents:
        if n <= task.texts.width:
            made[study.statistic("score", n)] = task.score(order[:n])
            made[study.statistic("random_score", n)] = float(
                np.mean([task.score(drawn) for drawn in random_latents(firing, n, rng)])
            )
    return made
