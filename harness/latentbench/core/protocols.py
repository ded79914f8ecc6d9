"""The small interfaces the harness asks for. An adapter is a part of a spec that knows how to open what it names.

Importing an adapter never imports torch: identity and facts are read from files and metadata, so that `validate` and
`plan` stay fast; tensors appear only in `load` and `texts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json, SpecModel, without_default, without_empty
from latentbench.core.stage import Stage
from latentbench.core.texts import ByText, Reading, chosen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from latentbench.core.sites import Site


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
class LanguageModel:
    """A loaded causal language model in evaluation mode with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


class ModelAdapter(SpecModel):
    """A causal language model that can be named, recognised and loaded."""

    adapter: str
    dtype: Annotated[str, Field(pattern="^(float32|bfloat16|float16)$")] = "float32"
    """Data type of the weights and of the forward pass."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the model's outputs: resolved revision or file digests, and dtype. Never a local path."""

    @property
    def label(self) -> str:
        """How pages and exports call it."""
        return self.adapter

    def conversion(self, roots: Roots) -> Stage | None:
        """What has to be made before the model can be loaded, by `load` when it is first needed and then kept in `roots.store`:
        its files in the layout that transformers loads. None where it is loaded as it is."""
        return None

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
    prepend_bos: bool = True
    """Whether every row begins with BOS, or with what the tokenizer itself puts in front of a text."""
    packing: Literal["separated", "documents"] = "separated"
    """How training documents share rows: end to end, each led by BOS, or one document a row. For training alone."""
    by_text: ByText | None = None
    """Reads one side of a split that each text decides for itself: `{part: train}` here and `{part: eval}` there share no text,
    whatever sets they are. Before `skip` and `documents`."""
    distinct: bool = False
    """Whether a text that an earlier document has, white space aside, is left out. Before `skip` and `documents`."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), self._newer, made(self))

    _newer: ClassVar[tuple[str, ...]] = ("prepend_bos", "packing", "by_text", "distinct")
    """Fields that are newer than records, written only where they are not the default; an adapter adds its own."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the documents and their order (revision or file digests, field, split, seed)."""

    @abstractmethod
    def texts(self, roots: Roots) -> Iterator[str]:
        """All documents in order, before `by_text`, `distinct`, `skip` and `documents`. May be infinite."""

    def labelled(self, roots: Roots) -> Mapping[str, Iterable[tuple[str, str]]]:
        """Sets of texts with their labels, by name, each as `texts` has them. Raises InvalidInput where it has no labels."""
        raise InvalidInput(f"texts of `adapter: {self.adapter}` have no labels")

    @property
    def splits(self) -> tuple[ByText, ...]:
        """Every side of a split by text that it reads."""
        return (self.by_text,) if self.by_text else ()

    def read(self, roots: Roots) -> Reading:
        """The documents that are meant."""
        found = chosen(self.texts(roots), self.by_text, self.distinct)
        stop = None if self.documents is None else self.skip + self.documents
        return Reading(islice(found, self.skip, stop), lambda: found.notes)

    def chosen_identity(self, roots: Roots) -> Json:
        """`identity`, and which of those documents `by_text` and `distinct` leave where they are set."""
        identity = self.identity(roots)
        choice = {"by_text": self.by_text and self.by_text.plain(), "distinct": self.distinct}
        kept = {name: value for name, value in choice.items() if value}  # newer than keys that exist
        return {**(identity if isinstance(identity, dict) else {"identity": identity}), **kept} if kept else identity

    def identity_of_read(self, roots: Roots) -> dict[str, Json]:
        """What determines the documents that `read` gives."""
        identity = self.chosen_identity(roots)
        held = identity if isinstance(identity, dict) else {"identity": identity}
        return {"adapter": self.adapter, **held, "skip": self.skip, "documents": self.documents}


@dataclass(frozen=True)
class Problem:
    """A problem with a verifiable answer."""

    prompt: str
    """What is asked. It is everything the model reads, and generation starts right after it, unless the problems are put in
    the model's chat template: then it is what the user says there (`read_problems` of latentbench.steering.grading)."""
    answer: str
    """The gold answer alone, e.g. `42` or a LaTeX expression."""


SLOT = "{question}"
"""Stands for the question in a text that says how questions are put."""


@dataclass(frozen=True)
class PromptForm:
    """How questions are put to a model. Two sources of problems with equal forms ask alike."""

    text: str
    """What is said, with `SLOT` for the question."""
    chat_template: bool = False
    """Whether it is said in the model's chat template, as the user."""
    system: str | None = None
    """The system instruction there."""

    def __str__(self) -> str:
        system = f" below the system instruction {self.system!r}" if self.system else ""
        return f"{self.text!r}{' in the chat template' if self.chat_template else ''}{system}"


class ProblemSet(SpecModel):
    """A sequence of problems with verifiable answers, in a fixed order; what steering vectors are trained on."""

    adapter: str
    skip: Annotated[int, Field(ge=0)] = 0
    """Problems left out at the start."""
    limit: PositiveInt | None = None
    """Problems read after `skip`; default all."""
    chat_template: bool = False
    """Whether the prompts are put in the model's own chat template, as what the user says; the answer begins behind it."""
    system: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    """System instruction in the chat template; left out where the template takes none."""

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the problems and their order, `chat_template` and `system` among it where they are set."""

    @abstractmethod
    def problems(self, roots: Roots) -> Iterator[Problem]:
        """All problems in order, before `skip` and `limit`, and before the chat template. May be infinite."""

    @property
    def template(self) -> str | None:
        """The prompts with `SLOT` for the question; None where they cannot be written so."""
        return None

    @property
    def form(self) -> PromptForm | None:
        """How the questions are put; None where that cannot be told."""
        return None if self.template is None else PromptForm(self.template, self.chat_template, self.system)

    @model_validator(mode="after")
    def _system_in_a_chat(self) -> Any:
        if self.system and not self.chat_template:
            raise ValueError("a `system` instruction has its place in the chat template; set `chat_template: true` too")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Both fields are newer than records, whose keys and facts stay as they were."""
        return without_empty("system", without_empty("chat_template", made(self)))


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
