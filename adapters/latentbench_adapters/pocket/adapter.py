"""`adapter: pocket`: the small language model and the texts that ship with latentbench, for first runs and tests.

The model goes through the same loading code as any other; only where its files stand is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from latentbench.core.paths import Roots
from latentbench.core.protocols import (
    SLOT,
    DatasetAdapter,
    LanguageModel,
    ModelAdapter,
    ModelFacts,
    Problem,
    ProblemSet,
)
from latentbench.core.spec_model import Json
from latentbench_adapters.model_files import folder_facts, folder_identity
from latentbench_adapters.model_loading import hook_module, load_model, load_tokenizer
from latentbench_adapters.pocket import MODEL_FOLDER
from latentbench_adapters.pocket.text import VERSION, documents, problems

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from latentbench.core.sites import Site


class PocketModel(ModelAdapter):
    """The pocket model: a LLaMA-type model of 1.5 M parameters trained on the pocket texts (see its model card)."""

    adapter: Literal["pocket"] = "pocket"

    def identity(self, roots: Roots) -> Json:
        return {"files": folder_identity(MODEL_FOLDER), "dtype": self.dtype}

    def facts(self, roots: Roots) -> ModelFacts:
        return folder_facts(MODEL_FOLDER)

    def published_name(self, roots: Roots) -> str:
        return self.adapter

    def hook_module(self, roots: Roots, site: Site) -> str | None:
        return hook_module(str(MODEL_FOLDER), None, site)

    def load(self, roots: Roots, device: torch.device) -> LanguageModel:
        return load_model(str(MODEL_FOLDER), None, self.dtype, device)

    def load_tokenizer(self, roots: Roots) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(MODEL_FOLDER), None)


class PocketText(DatasetAdapter):
    """Endless generated documents of one domain; the two splits share no text."""

    adapter: Literal["pocket"] = "pocket"
    domain: Literal["general", "chemistry", "law", "medicine", "code", "arithmetic"]
    """What the texts are about."""
    split: Literal["train", "eval"] = "train"
    """Which side of the split that the pocket model's own training also respected."""
    seed: int = Field(default=0, ge=0)
    """Another seed gives other documents of the same kind."""

    def identity(self, roots: Roots) -> Json:
        return {"pocket": VERSION, "domain": self.domain, "split": self.split, "seed": self.seed}

    def texts(self, roots: Roots) -> Iterator[str]:
        return documents(self.domain, self.split, self.seed)


class PocketProblems(ProblemSet):
    """Endless word problems with three or four additions and subtractions; the two splits share no question."""

    adapter: Literal["pocket"] = "pocket"
    split: Literal["train", "eval"] = "train"
    """Which side of the split that the pocket model's own training also respected."""
    seed: int = Field(default=0, ge=0)
    """Another seed gives other problems of the same kind."""

    def identity(self, roots: Roots) -> Json:
        """The generator's version, split and seed, and which of the problems are read."""
        return {"pocket": VERSION, **self.model_dump(mode="json", exclude={"adapter"})}

    @property
    def template(self) -> str:
        return SLOT

    def problems(self, roots: Roots) -> Iterator[Problem]:
        for drawn in problems(self.split, self.seed):
            yield Problem(drawn.question, str(drawn.answer))
