"""The small interfaces the harness asks for. An adapter is a frozen spec section that knows how to open what it names.

Importing an adapter never imports torch: identity and facts are read from files and metadata, so that `validate` and
`plan` stay fast; tensors appear only in `load` and `texts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from latentbench.core.errors import OutsideProject
from latentbench.core.spec_model import Json, SpecModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from latentbench.core.sites import Point, Site
    from latentbench.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model without loading it."""

    d_model: int
    layers: int
    vocabulary: int | None
    """Token ids it knows: rows of its embedding. Its tokenizer may hold fewer or more. None where its configuration leaves
    that to its architecture."""
    context: int | None = None
    """Longest text in tokens by its configuration; None where that states none."""


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
    model: str | None = None
    """Name of the language model it was trained on, as its files have it: `google/gemma-2-2b` or `gemma-2-2b`."""


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
        """The absolute path meant by `path`. Raises OutsideProject when it leaves the project and the allowed folders."""
        resolved = _resolved(self.project / path)
        if self._holds(resolved):
            return resolved
        raise OutsideProject(
            f"{path!r} lies outside the project; allow its folder with --allow DIR or LATENTBENCH_ALLOW=DIR"
        )

    def check_links(self, folder: Path) -> None:
        """Raises OutsideProject when something in `folder` or directly below its folders is a link that leads out.

        In the hub's cache every file of a snapshot is a link to the blobs of the same repository: those lead nowhere.
        """
        for path in (*folder.glob("*"), *folder.glob("*/*")):
            if path.is_symlink() and not self._holds(found := _resolved(path)) and not _is_blob(folder, found):
                raise OutsideProject(
                    f"{folder.name}/{path.relative_to(folder)} is a link that leads outside the project; allow the "
                    "folder it leads to with --allow DIR or LATENTBENCH_ALLOW=DIR"
                )

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(root.resolve()) for root in (self.project, *self.allowed))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # older Pythons raise the latter for links that lead to each other
        raise OutsideProject(f"{path.name!r} cannot be followed: {error}") from None


def _is_blob(folder: Path, path: Path) -> bool:
    """Whether `folder` is a snapshot in the hub's cache and `path` one of its repository's blobs."""
    repository = folder.parent.parent
    return folder.parent.name == "snapshots" and "--" in repository.name and path.parent == repository / "blobs"


class ModelAdapter(SpecModel):
    """A causal language model that can be named, recognised and loaded."""

    adapter: str
    dtype: Annotated[str, Field(pattern="^(float32|bfloat16|float16)$")] = "float32"
    """Data type of the weights and of the forward pass."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the model's outputs: resolved revision or file digests, and dtype. Never a local path."""

    @abstractmethod
    def facts(self, roots: Roots) -> ModelFacts | None:
        """Shape of the model, or None when its configuration is not on this machine."""

    def hook_module(self, roots: Roots, site: Site) -> str | None:
        """Path of the module at which `site` is read, e.g. `model.layers.3`; None when it cannot be known here."""
        return None

    def published_name(self, roots: Roots) -> str | None:
        """The name by which others know the model, e.g. `google/gemma-2-2b`; None for what lies in a local folder."""
        return None

    @abstractmethod
    def load(self, roots: Roots, device: torch.device) -> LanguageModel:
        """The model on `device`. Raises NotAvailable with what to do when it is not here."""

    @abstractmethod
    def load_tokenizer(self, roots: Roots) -> PreTrainedTokenizerBase:
        """The tokenizer alone."""


class DatasetAdapter(SpecModel):
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

    @abstractmethod
    def texts(self, roots: Roots) -> Iterator[str]:
        """All documents in order, before `skip` and `documents`. May be infinite."""


@dataclass(frozen=True)
class Problem:
    """A problem with a verifiable answer."""

    prompt: str
    """Everything the model reads, template included; generation starts right after it."""
    answer: str
    """The gold answer alone, e.g. `42` or a LaTeX expression."""


class ProblemSet(SpecModel):
    """A sequence of problems with verifiable answers, in a fixed order; what steering vectors are trained on."""

    adapter: str
    skip: Annotated[int, Field(ge=0)] = 0
    """Problems left out at the start."""
    limit: PositiveInt | None = None
    """Problems read after `skip`; default all."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the problems and their order."""

    @abstractmethod
    def problems(self, roots: Roots) -> Iterator[Problem]:
        """All problems in order, before `skip` and `limit`. May be infinite."""


@dataclass(frozen=True)
class Reply:
    """A judge's answer to one request."""

    text: str | None
    """None when the judge failed for good; `error` then says why."""
    error: str | None = None
    prompt_tokens: int = 0
    reply_tokens: int = 0
    lost: bool = False
    """Whether the judge was not there to answer: asked again later, it may."""
    ones: Mapping[int, float] | None = None
    """Where `text` has a token that is 0 or 1 alone: the digit's offset, and the probability of 1 against 0 there. None
    where the judge was not asked for probabilities or gave none."""


class Judge(SpecModel):
    """Who writes explanations and answers questions about texts: a chat model.

    A judge that is no chat model (the lexical one) subclasses `Judge` and is asked through its own methods.
    """

    adapter: str
    deterministic: ClassVar[bool] = False

    @property
    def graded(self) -> bool:
        """Whether its answers come with probabilities, so that AUROC means something."""
        return False

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines its answers; part of the metric's identity. Never a key or an address with a secret."""

    @property
    def label(self) -> str:
        """Short and stable: how numbers call it. Scores of judges with different labels are never ranked together."""
        return self.adapter

    def chat(self, requests: Sequence[Sequence[Mapping[str, str]]], roots: Roots, cache: Path) -> Iterator[Reply]:
        """One reply per request (a list of `{role, content}` messages), in order.

        A failed request is a `Reply` with an error, never an exception; `cache` is a folder for transcripts.
        """
        raise NotImplementedError


class SaeSource(SpecModel):
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
