"""What the flow studies have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from latentbench.flow.checks import unfoldable, unread
from latentbench.flow.places import problems
from latentbench.metrics.base import Array
from latentbench.metrics.study import Study

if TYPE_CHECKING:
    from latentbench.section import Json
    from latentbench.spec.experiment import Experiment
    from latentbench_adapters.protocols import Roots


class FlowStudy(Study):
    """A study of the maps that the spec's `flow:` section makes."""

    needs: ClassVar[frozenset[str]] = frozenset({"sae", "flow"})

    @property
    def folds(self) -> frozenset[str]:
        """What latents are scaled by: `threshold`, `activation` or neither."""
        return frozenset()

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        """Sites through which no flow can be traced, and scales that these SAEs and texts do not give."""
        thresholds = unfoldable(experiment) if "threshold" in self.folds else ()
        texts = unread(experiment.flow, experiment) if "activation" in self.folds else ()
        return (*problems(experiment.sites), *(f"{self.metric}: {message}" for message in (*thresholds, *texts)))

    def fold_texts(self, experiment: Experiment, roots: Roots) -> Json:
        """Identity of the texts that mean activations are taken on, those maps may be fitted on; None where none are."""
        flow = experiment.flow if "activation" in self.folds else None
        return flow.texts(experiment, roots) if flow else None


def share(part: Array, whole: Array) -> Array:
    """part / whole."""
    return part / whole
