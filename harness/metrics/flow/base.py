"""What the flow studies have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.flow.checks import unfoldable, unread
from harness.flow.places import problems
from harness.metrics.base import Array
from harness.metrics.study import Study

if TYPE_CHECKING:
    from adapters.protocols import Roots
    from harness.section import Json
    from harness.spec.experiment import Experiment


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
