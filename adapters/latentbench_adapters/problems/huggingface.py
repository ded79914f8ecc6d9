"""`adapter: huggingface`: problems from a dataset of the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from latentbench.section import Json
from latentbench_adapters.hub import check_dataset, is_commit, resolved_commit
from latentbench_adapters.huggingface import streamed_rows
from latentbench_adapters.problems.template import TemplatedProblems
from latentbench_adapters.protocols import Roots


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
