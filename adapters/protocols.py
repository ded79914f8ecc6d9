"""The small interfaces the harness asks for. An adapter is a frozen spec section that knows how to open what it names.

Importing an adapter never imports torch: identity and facts are read from files and metadata, so that `validate` and
`plan` stay fast; tensors appear only in `load` and `texts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, PositiveInt

from harness.section import Json, Section

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.activations.site import Point, Site
    from harness.sae.base import SparseAutoencoder


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model without loading it."""

    d_model: int
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class SaeFacts:
    """What an SAE's files state about it, read without loading a weight; None where they do not say."""

    d_in: int | None = None
    """Dimensions of the hidden states it reads."""
    width: int | None = None
    """Dictionary width: number of latents."""
    layer: int | None = None
    """Number of the decoder block it was trained on, counted from 0."""
    point: Point | None = None
    """Which hidden state of the block; None where only the block is stated."""


@dataclass(frozen=True)
class LanguageModel:
    """A loaded causal language model in evaluation mode with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


@dataclass(frozen=True)
class Roots:
    """Where a spec may read files: relative paths start at `project`; others must lie below an `allowed` folder."""

    project: Path
    allowed: tuple[Path, ...] = ()

    def resolve(self, path: str) -> Path:
        """The absolute path meant by `path`. Raises ValueError when it leaves the project and the allowed folders."""
        resolved = (self.project / path).resolve()
        if any(resolved.is_relative_to(root.resolve()) for root in (self.project, *self.allowed)):
            return resolved
        raise ValueError(
            f"{path!r} lies outside the project; allow its folder with --allow DIR or LATENTBENCH_ALLOW=DIR"
        )


class ModelAdapter(Section):
    """A causal language model that can be named, recognised and loaded."""

    adapter: str
    dtype: Annotated[str, Field(pattern="^(float32|bfloat16|float16)$")] = "float32"
    """Data type of the weights and of the forward pass."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the model's outputs: resolved revision or file digests, and dtype. Never a local path."""

    def pinned(self, roots: Roots) -> Self:
        """Itself with whatever may change (a branch) replaced by what it stands for now (a commit)."""
        return self

    @abstractmethod
    def facts(self, roots: Roots) -> ModelFacts | None:
        """Shape of the model, or None when its configuration is not on this machine."""

    def hook_module(self, roots: Roots, site: Site) -> str | None:
        """Path of the module at which `site` is read, e.g. `model.layers.3`; None when it cannot be known here."""
        return None

    @abstractmethod
    def load(self, roots: Roots, device: torch.device) -> LanguageModel:
        """The model on `device`. Raises NotAvailable with what to do when it is not here."""

    @abstractmethod
    def load_tokenizer(self, roots: Roots) -> PreTrainedTokenizerBase:
        """The tokenizer alone."""


class DatasetAdapter(Section):
    """A sequence of text documents, in a fixed order."""

    adapter: str
    context: Annotated[int, Field(ge=2)] = 128
    """Tokens per sequence."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Documents left out at the start."""
    documents: PositiveInt | None = None
    """Documents read after `skip`; required for evaluation."""
    tokens: PositiveInt | None = None
    """Tokens to train on; required for training."""
    repeat: bool = False
    """Whether training may read the documents more than once when they hold fewer than `tokens` tokens."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the documents and their order (revision or file digests, field, split, seed)."""

    def pinned(self, roots: Roots) -> Self:
        """Itself with whatever may change (a branch) replaced by what it stands for now (a commit)."""
        return self

    @abstractmethod
    def texts(self, roots: Roots) -> Iterator[str]:
        """All documents in order, before `skip` and `documents`. May be infinite."""


class SaeSource(Section):
    """A trained SAE that can be loaded from somewhere."""

    adapter: str
    budgeted: ClassVar[bool] = False

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the weights."""

    def facts(self, roots: Roots) -> SaeFacts | None:
        """What its configuration states, read without torch; None where nothing is known before it is loaded.

        Raises RefusedFile or NotAvailable like `identity`.
        """
        return None

    @abstractmethod
    def load(self, roots: Roots) -> SparseAutoencoder:
        """The SAE on the CPU, reading raw hidden states."""
