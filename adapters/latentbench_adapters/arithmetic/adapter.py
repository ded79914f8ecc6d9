"""`adapter: arithmetic`: problems to train steering vectors on; `arithmetic_sum` and its like test on others of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from latentbench.core.paths import Roots
from latentbench.core.protocols import SLOT, Problem, ProblemSet
from latentbench.core.spec_model import Json
from latentbench_adapters.arithmetic.questions import VERSION, Kind, Split, questions


class ArithmeticProblems(ProblemSet):
    """Endless questions of simple arithmetic with one number as the answer; the two splits share no question."""

    adapter: Literal["arithmetic"] = "arithmetic"
    kind: Kind
    """`sum`, `difference` (of two numbers from 10 to 99), `product` (of one from 11 to 99 and one from 3 to 19), `largest` (of
    three numbers) or `word_problem` (one addition or subtraction)."""
    split: Split = "train"
    """The task `arithmetic_<kind>` asks questions of `eval`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed gives other questions of the same kind."""
    prompt: Annotated[str, Field(max_length=20_000)] = f"Question: {SLOT}\nAnswer:"
    """What the model reads, or the user says in its chat template; `{question}` stands for the question. The tasks put theirs as
    the default does."""

    @field_validator("prompt")
    @classmethod
    def _asks(cls, prompt: str) -> str:
        if SLOT not in prompt:
            raise ValueError(f"the prompt {prompt[:80]!r} has no {SLOT}")
        return prompt

    def identity(self, roots: Roots) -> Json:
        """The questions' version, and all that is stated."""
        return {"arithmetic": VERSION, **self.model_dump(mode="json", exclude={"adapter"})}

    @property
    def template(self) -> str:
        return self.prompt

    def problems(self, roots: Roots) -> Iterator[Problem]:
        for drawn in questions(self.kind, self.split, self.seed):
            yield Problem(self.prompt.replace(SLOT, drawn.text), str(drawn.answer))
