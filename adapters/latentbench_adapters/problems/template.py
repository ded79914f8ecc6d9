"""Rows of a table as problems: a prompt template, and where the gold answer stands in the answer field."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from latentbench.errors import InvalidInput
from latentbench.section import Json
from latentbench_adapters.protocols import Problem, ProblemSet, Roots

SLOT = "{question}"


class TemplatedProblems(ProblemSet):
    """Problems made of rows with a question and an answer."""

    prompt: Annotated[str, Field(max_length=20_000)] = SLOT
    """What the model reads; `{question}` stands for the row's question and is all that is replaced."""
    question: Annotated[str, Field(min_length=1)] = "question"
    """Field that holds the question."""
    answer: Annotated[str, Field(min_length=1)] = "answer"
    """Field that holds the answer."""
    answer_pattern: Annotated[str, Field(max_length=1000)] | None = None
    """Regular expression whose first group, in its last match, is the gold answer, e.g. `####\\s*(.+)` for GSM8K;
    default: the whole field."""

    @model_validator(mode="after")
    def _usable(self) -> Any:
        if SLOT not in self.prompt:
            raise ValueError(f"the prompt {self.prompt[:80]!r} has no {SLOT}")
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(f"answer_pattern is not a regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"answer_pattern must have one group, which holds the answer; it has {groups}")
        return self

    @abstractmethod
    def rows(self, roots: Roots) -> Iterator[tuple[str, Json]]:
        """Every row with the words that say where it stands."""

    def problems(self, roots: Roots) -> Iterator[Problem]:
        for where, row in self.rows(roots):
            question, answer = (self._field(row, name, where) for name in (self.question, self.answer))
            yield Problem(self.prompt.replace(SLOT, question), self._gold(answer, where))

    def _field(self, row: Json, name: str, where: str) -> str:
        value = row.get(name) if isinstance(row, dict) else None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            has = f"it has {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else "it is no object"
            raise InvalidInput(f"{where}: no text or number under {name!r}; {has}")
        return str(value)

    def _gold(self, answer: str, where: str) -> str:
        if self.answer_pattern is None:
            return answer.strip()
        found = re.findall(self.answer_pattern, answer)
        if not found:
            raise InvalidInput(f"{where}: answer_pattern {self.answer_pattern!r} matches nothing in {answer[-80:]!r}")
        return str(found[-1]).strip()
