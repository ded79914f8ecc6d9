"""`steered_texts`: what the model writes after a few prompts, unsteered and steered at several scales, to be read side by side.

Texts are greedy, so that the same key means the same texts. There are no numbers in them: whether steering helps other metrics
say, on many more texts than anybody reads. Rows that state the same prompts and scales stand side by side on the steering
page, so a control is read beside what it is a control for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import ProblemSet
from latentbench.core.spec_model import Json
from latentbench.steering.method import parts_of
from latentbench.study.context import Longest
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

NAME = "steered_texts"
"""The metric's name, and that of its study."""


class SteeredTexts(Study):
    """Greedy texts of the unsteered and of the steered model after the same prompts, for the steering report.

    They are written at the spec's own scale and at every one of `scales`. It reports no numbers.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    implementation: ClassVar[str] = "latentbench.steering.texts_study:write_texts"

    metric: Literal["steered_texts"] = "steered_texts"
    prompts: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...], Field(max_length=32)] = ()
    """Texts to continue, as they stand."""
    problems_from: Annotated[ProblemSet, Choice("problems", "adapter")] | None = None
    """Or problems whose prompts are continued, never those that accuracy is reported on."""
    count: Annotated[int, Field(ge=1, le=32)] = 6
    """How many of these problems."""
    scales: Annotated[tuple[float, ...], Field(max_length=16)] = ()
    """Scales at which to write besides the spec's own."""
    new_tokens: PositiveInt = 64
    """Longest text."""

    @model_validator(mode="after")
    def _something_to_continue(self) -> Any:
        if bool(self.prompts) == (self.problems_from is not None):
            raise ValueError("state either prompts or problems_from")
        return self

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"problems": self.problems_from and self.problems_from.identity(roots)}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        parts = parts_of(experiment.steering) if self.scales else ()
        return tuple(
            f"`scales` are those of steering vectors; the method {part.method!r} adds none"
            for part in parts
            if not part.adds_vectors
        )

    def longest_answer(self, roots: Roots) -> Longest:
        return Longest(self.new_tokens, "new_tokens")
