"""What goes with a concept when its latents are taken out: targeted probe perturbation and spurious correlation removal.

A text is the mean over its ordinary tokens of the hidden state h where the SAE reads (or its last one), and z̄ the same mean of
the SAE's codes. Probes are logistic regressions on the mean states. For a probe with direction p, latents are ranked on training
texts by their attribution |(mean of z̄_i over texts with the label − over the others) · (w_i · p)|, w_i a latent's decoder row.
Ablating latents I takes Σ_{i∈I} z_i w_i from the hidden state of every token and leaves the SAE's error where it is. That is linear
in z, so the mean state loses Σ_{i∈I} z̄_i w_i: the numbers are exact, and no pass of the model is needed beyond the first.

**tpp** (a set with three or more labels; A_j the accuracy of the probe "is j", A_ij the same without the latents of class i):

    own(N)    = mean over classes i of (A_i − A_ii)          others(N) = mean over i of the mean over j ≠ i of (A_j − A_ij)
    score(N)  = own(N) − others(N)

A_j is the mean of the accuracy on texts of j and on all others: chance is ½ and ½ the most that `own` can be by itself.

**scr** (texts with two labels each, one wanted and one a spurious cue; all numbers of accuracy on texts of which each of the four
combinations has equally many): A_base is that of a probe for the wanted label trained where the two labels coincide, A_oracle that
of one trained on as many texts of all four combinations, A_abl(N) that of the first without the N latents most attributed to a
probe for the cue.

    score(N)  = mean over tasks of (A_abl(N) − A_base) / (A_oracle − A_base)

Each label is once wanted and once the cue, and each value of one coincides once with either value of the other: four tasks of a pair.
A task with A_oracle − A_base below `least_gap` has nothing to remove: it is left out and named. Classes and pairs are the
independent units of intervals and tests, because what differs most is which concept is taken out.

Controls of both: `random_score`, N latents drawn among those that fire on the training texts, mean of ten draws; and
`direction_score`, the probe's own direction set to its mean in place of ablating latents, which knows no SAE and has all that one
direction can have. An untrained SAE is a variant.

Sources: arXiv 2411.18895, "Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks", after SHIFT of arXiv 2403.19647;
numbers of latents and pooling are those of SAEBench (arXiv 2503.09532). Differences: the penalty of a probe is chosen on part of its
training texts, the accuracies of `tpp` are balanced by weights and not by leaving texts out, and `scr` is a mean over both directions.
Neither metric ranks SAEs reliably: on SAEs whose truth is known they run against it, and TPP falls in training (arXiv 2605.18229).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.core.plugins import Choice
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

Pooling = Literal["mean", "last"]
"""Which state a text is: the mean over its tokens that count, or that of the last of them."""


class ErasureStudy(Study):
    """What the two have in common."""

    place: ClassVar[str]
    """The domain in which the numbers stand."""
    of: ClassVar[str]
    """What the numbers are a mean over, in the plural."""

    latents: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents that are ablated. One that is larger than the dictionary has no numbers."""
    pooling: Pooling = "mean"
    """What a text is: the mean over its tokens that count (SAEBench), or the `last` of them, as `labelled_probing` has it."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the texts that is tested on."""

    @property
    @abstractmethod
    def data(self) -> Mapping[str, DatasetAdapter]:
        """The labelled texts by the field that names them."""

    @property
    def numbers_of_latents(self) -> tuple[int, ...]:
        """Each once."""
        return tuple(dict.fromkeys(self.latents))

    def statistic(self, name: str, latents: int | None = None) -> str:
        """What a statistic is called."""
        return f"{self.metric}.{name}" if latents is None else f"{self.metric}.{name}_{latents}"

    def number(self, name: str, unit: str, better: bool | None, latents: int | None = None) -> Estimator:
        """The mean of a statistic over the units."""
        inputs = (self.statistic(name, latents), self.statistic("count"))
        params = {} if latents is None else {"latents": latents}
        return Estimator(f"{self.metric}.{name}", 1, unit, better, inputs, ratio, units=self.of, params=params)

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {name: data.identity_of_read(roots) for name, data in self.data.items()}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        for data in self.data.values():
            data.labelled(roots)
        facts = experiment.model.facts(roots)
        room = facts.context if facts else None
        return tuple(
            f"{name}.context: the model has positions for {room} tokens, not {data.context}"
            for name, data in self.data.items()
            if room and data.context > room
        )

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        # What a probe reads and is tested on; how many latents go is a parameter of each number.
        asked = {name: value for name, value in self.plain().items() if name not in ("latents", *self.data)}
        contexts = {f"{name}_context": data.context for name, data in self.data.items()}
        return {
            self.place: {"layer": str(experiment.sites[0]), **self.identity(experiment, roots), **asked, **contexts}
        }


class TargetedProbePerturbation(ErasureStudy):
    """Drop in accuracy of a class's probe when the class's latents are ablated, less that of the other classes' probes."""

    implementation: ClassVar[str] = "latentbench.latents.targeted_perturbation:measure_tpp"
    place: ClassVar[str] = "labelled_classes"
    of: ClassVar[str] = "classes"
    displays: ClassVar[Mapping[str, Display]] = {
        "tpp.score": Display("TPP", 74, against="tpp.random_score"),
        "tpp.random_score": Display("TPP, random latents"),
        "tpp.direction_score": Display("TPP, probe direction"),
    }

    metric: Literal["tpp"] = "tpp"
    sets: Annotated[DatasetAdapter, Choice("datasets", "adapter")]
    """Texts with a `label`: every file is a set. Labels with too few texts, and sets with fewer than three others, are left out
    and named in the record."""
    texts: Annotated[int, Field(ge=64)] = 1000
    """Different texts read of each set at most, from its beginning. The hidden states of all their tokens are stored."""

    @property
    def data(self) -> Mapping[str, DatasetAdapter]:
        return {"sets": self.sets}

    def numbers(self) -> tuple[Estimator, ...]:
        names = (("score", True), ("own", None), ("others", False), ("random_score", None))
        each = [self.number(name, "difference", better, n) for name, better in names for n in self.numbers_of_latents]
        return (
            *each,
            self.number("direction_score", "difference", None),
            self.number("accuracy", "fraction", None),
        )


class SpuriousCorrelationRemoval(ErasureStudy):
    """Share of the accuracy lost to a spurious cue in training that comes back when the cue's latents are ablated."""

    implementation: ClassVar[str] = "latentbench.latents.spurious_correlation:measure_scr"
    place: ClassVar[str] = "labelled_pairs"
    of: ClassVar[str] = "pairs"
    displays: ClassVar[Mapping[str, Display]] = {
        "scr.score": Display("SCR", 76, against="scr.random_score"),
        "scr.random_score": Display("SCR, random latents"),
        "scr.direction_score": Display("SCR, probe direction"),
    }

    metric: Literal["scr"] = "scr"
    concepts: Annotated[DatasetAdapter, Choice("datasets", "adapter")]
    """Texts with a `label` of two values: every file is a set."""
    cues: Annotated[DatasetAdapter, Choice("datasets", "adapter")]
    """The same with another label. A set of these and one of `concepts` are a pair where they share texts: the same file with another
    `label`, or files that overlap. Pairs with too few texts of a combination of labels are left out and named in the record."""
    texts: Annotated[int, Field(ge=64)] = 1000
    """Texts of a pair at most, a quarter of them of each combination. The hidden states of all their tokens are stored."""
    least_gap: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The least A_oracle − A_base of a task, so that no score is a small number divided by a smaller one."""

    @property
    def data(self) -> Mapping[str, DatasetAdapter]:
        return {"concepts": self.concepts, "cues": self.cues}

    def numbers(self) -> tuple[Estimator, ...]:
        names = (("score", True), ("random_score", None))
        each = [self.number(name, "fraction", better, n) for name, better in names for n in self.numbers_of_latents]
        fixed = ("direction_score", "base_accuracy", "oracle_accuracy")
        return *each, *(self.number(name, "fraction", None) for name in fixed)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        one, other = ((data.context, data.prepend_bos) for data in self.data.values())
        unlike = ("cues.context, cues.prepend_bos: the texts are those of `concepts`, so say the same here",)
        return (*super().problems_in(experiment, roots), *(unlike if one != other else ()))
