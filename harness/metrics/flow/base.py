"""What the flow studies have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.flow.places import problems
from harness.metrics.base import Array
from harness.metrics.study import Study

if TYPE_CHECKING:
    from adapters.protocols import Roots
    from harness.spec.experiment import Experiment


class FlowStudy(Study):
    """A study of the maps that the spec's `flow:` section makes."""

    needs: ClassVar[frozenset[str]] = frozenset({"sae", "flow"})

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        """Sites through which no flow can be traced."""
        return problems(experiment.sites)


def share(part: Array, whole: Array) -> Array:
    """part / whole."""
    return part / whole
