"""`adapter: huggingface`: a text dataset of the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from latentbench.border import foreign
from latentbench.errors import InvalidInput, NotAvailable
from latentbench.section import Json
from latentbench_adapters.hub import check_dataset, is_commit, resolved_commit
from latentbench_adapters.protocols import DatasetAdapter, Roots


class HuggingFaceDataset(DatasetAdapter):
    """Rows of a hub dataset in their stored order."""

    adapter: Literal["huggingface"] = "huggingface"
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)]
    """Hub id such as `HuggingFaceFW/fineweb`."""
    config: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] = "main"
    """Commit, tag or branch; state a commit so that the documents cannot change."""
    field: Annotated[str, Field(min_length=1)] = "text"
    """Column that holds the text."""

    def identity(self, roots: Roots) -> Json:
        check_dataset(self.id, roots.project)
        return {
            "hub": self.id,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "field": self.field,
        }

    def pinned(self, roots: Roots) -> Self:
        if is_commit(self.revision):
            return self
        return self.model_copy(update={"revision": resolved_commit("dataset", self.id, self.revision)})

    def texts(self, roots: Roots) -> Iterator[str]:
        for row in streamed_rows(self.id, self.config, self.split, self.revision):
            if not isinstance(row.get(self.field), str):
                raise InvalidInput(f"{self.id}: no text under {self.field!r}; columns: {', '.join(row)}")
            yield row[self.field]


def streamed_rows(name: str, config: str | None, split: str, revision: str) -> Iterator[dict[str, Json]]:
    """Rows of a hub dataset in their stored order. Raises NotAvailable with what to do when they cannot be had."""
    from datasets import load_dataset

    check_dataset(name)
    advice = "go online, or use `adapter: files` with a local copy"
    with foreign(f"the dataset {name!r} cannot be read", advice, NotAvailable):
        yield from load_dataset(name, config, split=split, revision=revision, streaming=True)
