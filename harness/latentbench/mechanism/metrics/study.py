"""What the studies of a vector's mechanism share: the problems whose prompts are read, and the vectors themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import PositiveInt

from latentbench.core.plugins import Choice
from latentbench.core.protocols import Problem, ProblemSet
from latentbench.core.spec_model import Json
from latentbench.core.text import folded
from latentbench.steering.method import parts_of
from latentbench.study.context import Longest
from latentbench.study.study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.paths import Roots
    from latentbench.interventions.injection import VectorInjection
    from latentbench.mechanism.passages import Passages
    from latentbench.statistics.arrays import Array
    from latentbench.statistics.units import Units
    from latentbench.study.context import ExperimentView, StageContext

DOMAIN = "mechanism"
"""The column group of all of them."""

_WITHOUT_VECTORS = frozenset({"none", "prefix", "lora"})


class MechanismStudy(Study):
    """A study of steering vectors over what they make the model write.

    Its numbers have no better and worse, so its column group takes no part in whether rows may be ranked together.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})

    problems_from: Annotated[ProblemSet, Choice("problems", "adapter")]
    """Problems whose prompts are continued; never those that accuracy is reported on."""
    prompts: PositiveInt = 64
    """How many of them."""
    new_tokens: PositiveInt = 64
    """Longest continuation."""

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"problems": self.problems_from.identity(roots)}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return vector_problems(self.metric, experiment)

    def longest_answer(self, roots: Roots) -> Longest:
        return Longest(self.new_tokens, "new_tokens")

    def asked(self, lab: StageContext) -> list[Problem]:
        """The problems."""
        from latentbench.steering.grading import problems_of

        return problems_of(self.problems_from, self.prompts, lab.roots)

    def units(self, lab: StageContext) -> dict[str, Units]:
        """Which problems are one: those whose prompts are."""
        from latentbench.statistics.units import units_of

        return {DOMAIN: units_of(folded(problem.prompt) for problem in self.asked(lab))}

    def passages(self, lab: StageContext) -> Passages:
        """What the steered model writes after the prompts."""
        from latentbench.mechanism.passages import continuations

        return continuations(
            lab.model(), lab.subject(), [problem.prompt for problem in self.asked(lab)], self.new_tokens
        )


def vector_problems(metric: str, experiment: ExperimentView) -> tuple[str, ...]:
    """The complaint about a method that adds no vector, or a stack whose vectors are not added at the same tokens."""
    for method in methods_without_vectors(experiment.steering):
        return (f"{metric!r} looks at steering vectors; the method {method!r} adds none",)
    if len({getattr(part, "scope", None) for part in parts_of(experiment.steering)}) > 1:
        return (f"{metric!r} looks at vectors that are added at the same tokens; the parts' `scope` differ",)
    return ()


def methods_without_vectors(steering: Any) -> list[str]:
    """Methods that add no vector, of a `steering` section and its parts."""
    methods = (getattr(part, "method", None) for part in parts_of(steering))
    return [method for method in methods if method in _WITHOUT_VECTORS]


def injection_of(lab: StageContext) -> VectorInjection:
    """The cell's vectors, those of a stack summed by layer. Raises InvalidInput when it steers by something else."""
    from latentbench.core.errors import InvalidInput
    from latentbench.interventions.injection import VectorInjection
    from latentbench.interventions.intervention import Stack
    from latentbench.interventions.vectors import SteeringVectors

    made = lab.subject()
    if isinstance(made, VectorInjection):
        return made
    parts = made.parts if isinstance(made, Stack) else ()
    adding = [part for part in parts if isinstance(part, VectorInjection)]
    if not adding or len(adding) < len(parts) or len({part.scope for part in adding}) > 1:
        raise InvalidInput("this cell adds no vectors at the same tokens, so there is no mechanism of them to look at")
    sums: dict[int, Tensor] = {}
    for layer, delta in (pair for part in adding for pair in part.deltas.items()):
        sums[layer] = sums[layer] + delta if layer in sums else delta
    return VectorInjection(SteeringVectors(sums), scope=adding[0].scope)


def ones(like: Array) -> Array:
    """As many ones: the statistic that makes a sum over units a mean."""
    import numpy as np

    return np.ones(len(like))
