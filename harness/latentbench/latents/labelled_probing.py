"""Probes on labelled texts: what k latents tell of a label, against all that the hidden state tells.

Each set has texts with one of two labels. A text is the hidden state of its last token that counts; the SAE's codes are those of
that state. Texts are divided by their own words into training and test. On the training texts the k latents with the largest
absolute difference of class means are chosen and a logistic regression is fitted on them; the baseline is a logistic regression
on the hidden state. Both have their L2 penalty chosen among ten by the AUROC on part of the training texts.

    auc(k) = mean over sets of the AUROC on test texts            states_auc = the same from the hidden state
    gain(k) = mean over sets of (AUROC from k latents − AUROC from the hidden state)

Sets are the independent units. Protocol: arXiv 2502.16681, "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing",
§3 and its package sae-probes, from which this differs: features are brought to unit scale first, as its baselines are and its SAE
probes are not; a text longer than `context` keeps its beginning, not its end; test texts share no text with those of training,
although its sets repeat many; and the baseline is logistic regression alone, not the best of five methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.core.plugins import Choice
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json
from latentbench.core.text import byte_size, plural
from latentbench.metrics.base import Display, Estimator, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

DOMAIN = "labelled_sets"
"""The task, as a column group of its own."""
STATE_BYTES = 4
"""Of each number of a state: they are kept in float32."""
SETS, STATES = "labelled_probing.sets", "labelled_probing.auc_states"


def auc_from(k: int) -> str:
    """The statistic of AUROC from k latents."""
    return f"labelled_probing.auc_{k}"


def gain_from(k: int) -> str:
    """The statistic of what k latents have beyond the hidden state."""
    return f"labelled_probing.gain_{k}"


class LabelledProbing(Study):
    """AUROC of telling two labels apart from k latents, over many labelled sets, beside the hidden state's."""

    implementation: ClassVar[str] = "latentbench.latents.label_probes:measure_labelled_probing"
    displays: ClassVar[Mapping[str, Display]] = {
        "labelled_probing.auc": Display("Probe AUROC", 72, against="labelled_probing.states_auc"),
        "labelled_probing.states_auc": Display("State AUROC"),
        "labelled_probing.gain": Display("Probe − state"),
    }

    metric: Literal["labelled_probing"] = "labelled_probing"
    sets: Annotated[DatasetAdapter, Choice("datasets", "adapter")]
    """Texts with a `label`: every file is a set. Those that do not have two labels, each on enough texts, are left out and named
    in the record."""
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of latents."""
    texts: Annotated[int, Field(ge=64)] = 1500
    """Different texts read of each set at most, from its beginning."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the texts that is tested on."""

    def numbers(self) -> tuple[Estimator, ...]:
        def mean(name: str, unit: str, better: bool | None, statistic: str, k: int | None = None) -> Estimator:
            params = {} if k is None else {"latents": k}
            return Estimator(
                f"labelled_probing.{name}", 1, unit, better, (statistic, SETS), ratio, units="sets", params=params
            )

        numbers = dict.fromkeys(self.k)
        aucs = (mean("auc", "fraction", True, auc_from(k), k) for k in numbers)
        gains = (mean("gain", "difference", True, gain_from(k), k) for k in numbers)
        return *aucs, *gains, mean("states_auc", "fraction", None, STATES)

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return self.sets.identity_of_read(roots)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        self.sets.labelled(roots)
        facts = experiment.model.facts(roots)
        if facts and facts.context and self.sets.context > facts.context:
            return (f"sets.context: the model has positions for {facts.context} tokens, not {self.sets.context}",)
        return ()

    def preview(self, experiment: ExperimentView, roots: Roots) -> str | None:
        facts = experiment.model.facts(roots)
        if facts is None:
            return None
        sets, site = len(self.sets.labelled(roots)), experiment.sites[0]
        most = byte_size(sets * self.texts * facts.d_model * STATE_BYTES)
        return (
            f"reads the last states of {plural(sets, 'labelled set')} at {site}, at most {most}: computed and stored once for all "
            "SAEs there"
        )

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        fixed = {"texts": self.texts, "test_share": self.test_share, "context": self.sets.context}
        return {DOMAIN: {"layer": str(experiment.sites[0]), "sets": self.sets.identity_of_read(roots), **fixed}}
