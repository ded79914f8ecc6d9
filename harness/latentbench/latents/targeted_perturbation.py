"""The metric `tpp` (erasure.py): what ablating the latents of one class does to the probes of all classes of its set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.latents.erasing import Erasable, Reader, erasable, latents_written, left_out, random_latents, too_wide
from latentbench.latents.erasure import TargetedProbePerturbation
from latentbench.latents.label_probes import LEAST_TEXTS, labels_of, place_of
from latentbench.latents.probing import Labels, Probe
from latentbench.metrics.values import null_value
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.study.context import StageContext

LEAST_CLASSES = 3
"""With two, a probe is the other's mirror image, and nothing could be lost by one alone."""


@dataclass(frozen=True)
class ClassedSet:
    """A set's texts, in the order of their digests, and which of its classes each is of."""

    name: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    numbers: NDArray[np.int64]
    """[texts] the class of each."""
    test: Labels
    """[texts] whether it is tested on."""

    @staticmethod
    def of(name: str, labels: Mapping[str, str], test_share: float) -> tuple[ClassedSet | None, list[str]]:
        """The set of labelled texts, None where it cannot be used; and what is left out of it, with the reason."""
        ordered = sorted(labels, key=place_of)
        test = np.array([place_of(text) < test_share for text in ordered], dtype=bool)
        halves = [
            Counter(labels[t] for t, here in zip(ordered, test, strict=True) if here == half) for half in (False, True)
        ]
        found = sorted(set(labels.values()))
        classes = [label for label in found if min(half[label] for half in halves) >= LEAST_TEXTS]
        if len(classes) < LEAST_CLASSES:
            return None, [f"{name} has {len(classes)} classes of enough texts, of {len(found)}"]
        kept = np.array([labels[text] in classes for text in ordered])
        texts = tuple(text for text, keep in zip(ordered, kept, strict=True) if keep)
        numbers = np.array([classes.index(labels[text]) for text in texts])
        few = [f"{name}: {label} has too few texts" for label in found if label not in classes]
        return ClassedSet(name, texts, tuple(classes), numbers, test[kept]), few

    def labels(self, number: int) -> Labels:
        """[texts] whether it is of a class."""
        found: Labels = self.numbers == number
        return found


def measure_tpp(study: TargetedProbePerturbation, context: StageContext) -> Findings:
    """The drops in every class of every set; nulls with the reason for an SAE that has no latents to ablate.

    Raises CellFailed where no set can be used.
    """
    try:
        rows = latents_written(context.sae.to(context.device).eval())
    except InvalidInput as error:
        return Findings(values=tuple(null_value(number, study.place, str(error)) for number in study.numbers()))
    found, reasons = _sets(study, context, rows)
    if not found:
        raise CellFailed(f"tpp: none of {len(reasons)} sets can be used: {'; '.join(reasons[:3])}")
    by_class = [one for classes in found.values() for one in classes.values()]
    statistics = {name: np.array([one[name] for one in by_class]) for name in by_class[0]}
    warnings = left_out("tpp", "sets or classes", reasons)
    return Findings(
        {study.place: statistics}, details={"sets": found}, warnings=warnings, reasons=too_wide(study, len(rows))
    )


def _sets(
    study: TargetedProbePerturbation, context: StageContext, written: Tensor
) -> tuple[dict[str, dict[str, dict[str, float]]], list[str]]:
    """Statistics by class by set, and what was left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    reasons: list[str] = []
    given = study.sets.labelled(context.roots)
    for number, (name, rows) in enumerate(given.items()):
        context.progress(number, len(given), "sets")
        classed, why = _read(name, rows, study, context)
        reasons += why
        if classed is not None:
            found[name] = _perturbed(classed, study, context, written)
    context.progress(len(given), len(given), "sets")
    return found, reasons


def _read(
    name: str, rows: Iterable[tuple[str, str]], study: TargetedProbePerturbation, context: StageContext
) -> tuple[ClassedSet | None, list[str]]:
    """The set without texts that have no token that counts, which only the model can say."""
    labels = labels_of(rows, study.sets, study.texts)
    classed, why = ClassedSet.of(name, labels, study.test_share)
    if classed is None:
        return None, why
    counts = Reader(study, context, study.sets).tokens_of(classed.texts).counts.tolist()
    if min(counts) > 0:
        return classed, why
    readable = {text: labels[text] for text, count in zip(classed.texts, counts, strict=True) if count}
    classed, again = ClassedSet.of(name, readable, study.test_share)
    return classed, [*why, *again]


def _perturbed(
    classed: ClassedSet, study: TargetedProbePerturbation, context: StageContext, written: Tensor
) -> dict[str, dict[str, float]]:
    """The statistics of every class of a set."""
    reader = Reader(study, context, study.sets)
    texts = erasable(reader.tokens_of(classed.texts), context.sae, written)
    train = ~classed.test
    tasks = [(classed.labels(number), train) for number in range(len(classed.classes))]
    probes = reader.probes_of(classed.texts, tasks, texts.states)
    rng = np.random.default_rng(context.seed("random latents", classed.name))
    found = drops(texts, classed, probes, study, rng)
    return dict(zip(classed.classes, found, strict=True))


def drops(
    texts: Erasable,
    classed: ClassedSet,
    probes: Sequence[Probe],
    study: TargetedProbePerturbation,
    rng: np.random.Generator,
) -> list[dict[str, float]]:
    """The statistics of each class: what its probe, and those of the others, lose with its latents."""
    accuracy = _Accuracy(texts, classed, tuple(probes))
    firing = texts.firing(~classed.test)
    found = []
    for own, probe in enumerate(probes):
        order = texts.strongest(probe, classed.labels(own), ~classed.test)
        made = {study.statistic("count"): 1.0, study.statistic("accuracy"): float(accuracy.clean[own])}
        made[study.statistic("direction_score")] = _score(accuracy.lost_without(probe), own)
        for n in study.numbers_of_latents:
            if n <= texts.width:
                lost = accuracy.lost(order[:n])
                made[study.statistic("own", n)] = float(lost[own])
                made[study.statistic("others", n)] = _others(lost, own)
                made[study.statistic("score", n)] = _score(lost, own)
                drawn = [_score(accuracy.lost(latents), own) for latents in random_latents(firing, n, rng)]
                made[study.statistic("random_score", n)] = float(np.mean(drawn))
        found.append(made)
    return found


def _others(lost: Array, own: int) -> float:
    return float(np.delete(lost, own).mean())


def _score(lost: Array, own: int) -> float:
    return float(lost[own]) - _others(lost, own)


@dataclass(frozen=True)
class _Accuracy:
    """Balanced accuracy of every class's probe on the test texts, and what is lost of it."""

    texts: Erasable
    classed: ClassedSet
    probes: tuple[Probe, ...]

    @cached_property
    def clean(self) -> Array:
        """[classes] without ablation."""
        return self._of([probe.scores(self.texts.states[self.classed.test]) for probe in self.probes])

    def lost(self, ablated: NDArray[np.int64]) -> Array:
        """[classes] by ablating latents."""
        return self.clean - self._of(self.texts.scores(self.probes, self.classed.test, ablated))

    def lost_without(self, erased: Probe) -> Array:
        """[classes] by setting a probe's direction to its mean."""
        test = self.classed.test
        return self.clean - self._of(self.texts.scores_without(erased, self.probes, test, ~test))

    def _of(self, scores: Sequence[Array]) -> Array:
        labels = [self.classed.labels(number)[self.classed.test] for number in range(len(self.probes))]
        return np.array([balanced_accuracy(s > 0, y) for s, y in zip(scores, labels, strict=True)])


def balanced_accuracy(said: Labels, labels: Labels) -> float:
    """Mean of the shares of positives and of negatives that are told as such; both must occur."""
    return float((said[labels].mean() + (~said[~labels]).mean()) / 2)
