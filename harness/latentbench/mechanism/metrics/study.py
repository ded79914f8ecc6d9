"""What the studies of a vector's mechanism share: the problems whose prompts are continued, and what cannot be studied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from latentbench.core.errors import InvalidInput
from latentbench.core.plugins import Choice
from latentbench.core.protocols import Problem, ProblemSet
from latentbench.core.sites import OUTPUT
from latentbench.core.spec_model import Json, without_default
from latentbench.core.text import folded
from latentbench.steering.grading import read_problems
from latentbench.steering.method import parts_of
from latentbench.study.context import Longest
from latentbench.study.study import Study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentbench.core.paths import Roots
    from latentbench.statistics.units import Units
    from latentbench.study.context import ExperimentView, StageContext

DOMAIN = "mechanism"
"""The column group of all of them."""


class MechanismStudy(Study):
    """A study of steering vectors over what they make the model write.

    Its numbers have no better and worse, so its column group takes no part in whether rows may be ranked together.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    newer: ClassVar[tuple[str, ...]] = ("temperature", "only_ended")
    """Fields that are newer than records: they are in keys and facts only where they are not left at their default."""

    problems_from: Annotated[ProblemSet, Choice("problems", "adapter")]
    """Problems whose prompts are continued; never those that accuracy is reported on."""
    prompts: PositiveInt = 64
    """How many of them."""
    new_tokens: PositiveInt = 64
    """Longest continuation."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0 continues greedily; otherwise the texts that are studied are drawn from the full distribution, by a seed that follows
    from the key of the study, as the paper draws them at 1. Answers that are graded stay greedy."""
    only_ended: bool = False
    """Whether only continuations are studied that the model ended by itself, within `new_tokens`: the others are left out,
    and how many they are is said."""

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), self.newer, made(self))

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"problems": self.problems_from.identity(roots)}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return vector_problems(self.metric, experiment)

    def longest_answer(self, roots: Roots) -> Longest:
        return Longest(self.new_tokens, "new_tokens")

    def asked(self, context: StageContext) -> list[Problem]:
        """The problems. Raises InvalidInput where there are none."""
        if found := read_problems(self.problems_from, context, self.prompts):
            return found
        raise InvalidInput(f"{self.metric}: there are no problems to read")

    def units(self, context: StageContext, chosen: Sequence[int] | None = None) -> dict[str, Units]:
        """Which problems are one unit: those whose prompts are the same but for white space.

        `chosen` are the numbers of those that there are statistics of; None: all.
        """
        from latentbench.statistics.units import units_of

        asked = self.asked(context)
        return {DOMAIN: units_of(folded(asked[number].prompt) for number in chosen or range(len(asked)))}


def vector_problems(metric: str, experiment: ExperimentView) -> tuple[str, ...]:
    """What is wrong with a method that adds no vector, or a stack whose vectors are not added at the same tokens."""
    parts = list(parts_of(experiment.steering))
    for part in parts:
        if not part.adds_vectors:
            return (f"{metric!r} looks at steering vectors; the method {part.method!r} adds none",)
        if part.place != OUTPUT:
            return (f"{metric!r} looks at vectors that are added to outputs of blocks; the spec states `place`",)
        if changed := next((name for name in ("positions", "keep_norm") if name in part.stated_use()), None):
            return (f"{metric!r} looks at vectors that are added at every token in scope; the spec states `{changed}`",)
    if len({part.scope for part in parts}) > 1:
        return (f"{metric!r} looks at vectors that are added at the same tokens; the parts' `scope` differ",)
    return ()
