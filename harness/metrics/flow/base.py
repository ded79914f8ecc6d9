"""What the flow studies have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.flow.checks import unfoldable
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

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        """Sites through which no flow can be traced, and thresholds that are to be folded where there are none."""
        folded = unfoldable(experiment) if self.folds_thresholds else ()
        return (*problems(experiment.sites), *(f"{self.metric}: {message}" for message in folded))

    @property
    def folds_thresholds(self) -> bool:
        """Whether it scales latents by their thresholds."""
        return False

    def fold_texts(self, experiment: Experiment, roots: Roots, read: bool) -> Json:
        """Identity of the texts that mean activations are taken on, those maps may be fitted on; None where not `read`."""
        return experiment.flow.texts(experiment, roots) if read and experiment.flow else None


def share(part: Array, whole: Array) -> Array:
    """part / whole."""
    return part / whole
