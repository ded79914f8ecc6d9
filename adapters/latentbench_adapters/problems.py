"""Rows of a table as problems with verifiable answers.

They come from JSON Lines files (`adapter: files`) or from the Hugging Face hub (`adapter: huggingface`).
A prompt template makes the problem of a row; a pattern says where the gold answer stands in the answer field.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.hub import check_dataset, is_commit, resolved_commit
from latentbench.core.paths import Roots
from latentbench.core.protocols import SLOT, Problem, ProblemSet
from latentbench.core.spec_model import Json
from latentbench_adapters.datasets import FilesDataset, streamed_rows

PROBLEMS = (".jsonl", ".csv", ".tsv", ".parquet")


class TemplatedProblems(ProblemSet):
    """Problems made of rows with a question and an answer."""

    prompt: Annotated[str, Field(max_length=20_000)] = SLOT
    """What the model reads, or the user says in its chat template; `{question}` stands for the row's question and is all
    that is replaced."""
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

    @property
    def template(self) -> str:
        return self.prompt

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


class FileProblems(TemplatedProblems):
    """Problems in the order of the sorted file names and of their lines."""

    adapter: Literal["files"] = "files"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """File or glob such as `data/gsm8k/train.jsonl`, relative to the project."""

    def identity(self, roots: Roots) -> Json:
        files = self._files().identity(roots)["files"]
        return {"files": files, **self.model_dump(mode="json", exclude={"adapter", "path"})}

    def rows(self, roots: Roots) -> Iterator[tuple[str, Json]]:
        for file in self._files().files(roots):
            if file.kind not in PROBLEMS:
                raise RefusedFile(f"{file.name}: problems are read from {', '.join(PROBLEMS)} files")
            for number, row in file.rows((self.question, self.answer)):
                yield file.place(number), row

    def _files(self) -> FilesDataset:
        return FilesDataset(path=self.path)


class HuggingFaceProblems(TemplatedProblems):
    """Rows of a hub dataset in their stored order."""

    adapter: Literal["huggingface"] = "huggingface"
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)]
    """Hub id such as `agentica-org/DeepScaleR-Preview-Dataset`."""
    config: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] = "main"
    """Commit, tag or branch; state a commit so that the problems cannot change."""

    def identity(self, roots: Roots) -> Json:
        check_dataset(self.id, roots.project)
        return {"hub": self.id, **self.model_dump(mode="json", exclude={"adapter", "id"})}

    def pinned(self, roots: Roots) -> Self:
        """Itself with the revision replaced by the commit it stands for now."""
        if is_commit(self.revision):
            return self
        return self.model_copy(update={"revision": resolved_commit("dataset", self.id, self.revision)})

    def rows(self, roots: Roots) -> Iterator[tuple[str, Json]]:
        for number, row in enumerate(streamed_rows(self.id, self.config, self.split, self.revision), 1):
            yield f"{self.id}: row {number}", row
