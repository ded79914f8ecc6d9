"""`adapter: transformers`: a local chat model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.judges import ones_of
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from latentbench.core.spec_model import Json
from latentbench_adapters.transformers_model import TransformersModel

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.protocols import LanguageModel

_VERSION = 2
"""Raised when the same model gives other answers to the same messages."""


class TransformersJudge(Judge):
    """A chat model loaded like any other model (safetensors only, no remote code), answering greedily."""

    adapter: Literal["transformers"] = "transformers"
    deterministic: ClassVar[bool] = True
    id: Annotated[str, Field(min_length=1, max_length=300)]
    """Hub id such as `Qwen/Qwen2.5-0.5B-Instruct`, or the path of a folder (relative to the project, or allowed)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] | None = None
    """Commit, tag or branch of a hub model; state a commit so that the judge cannot change."""
    dtype: Annotated[str, Field(pattern="^(float32|bfloat16|float16)$")] = "float32"
    """Data type of the weights and of the forward pass."""
    max_tokens: PositiveInt = 512
    """Longest reply, thoughts included."""
    probabilities: bool = False
    """Whether to keep how sure it was of its labels, which AUROC needs."""

    @model_validator(mode="after")
    def _known_form(self) -> Any:
        self.model()
        return self

    @property
    def graded(self) -> bool:
        return self.probabilities

    @property
    def label(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    def model(self) -> TransformersModel:
        """The model meant, as an adapter of its own."""
        return TransformersModel(id=self.id, revision=self.revision, dtype=self.dtype)

    def pinned(self, roots: Roots) -> Self:
        commit = self.model().pinned(roots).revision
        return self if commit == self.revision else self.model_copy(update={"revision": commit})

    def identity(self, roots: Roots) -> Json:
        return {"transformers": self.model().identity(roots), "max_tokens": self.max_tokens, "version": _VERSION}

    def chat(self, requests: Sequence[Sequence[Mapping[str, str]]], roots: Roots, cache: Path) -> Iterator[Reply]:
        """Raises NotAvailable when the model is not here or is no chat model."""
        from latentbench_adapters.judges.requests import Transcripts

        transcripts, identity = Transcripts(cache), self.identity(roots)
        for messages in requests:
            request = {"judge": identity, "messages": [dict(message) for message in messages]}
            request |= {"probabilities": True} if self.probabilities else {}
            reply = transcripts.get(request)
            if reply is None:
                reply = _answer(_loaded(self.model(), roots), messages, self.max_tokens, self.probabilities)
                if reply.text is not None:
                    transcripts.put(request, reply)
            yield reply


@lru_cache(maxsize=1)
def _loaded(model: TransformersModel, roots: Roots) -> LanguageModel:
    """The model, once per process."""
    import torch

    from latentbench.interventions.writing_ways import generate_way

    loaded = model.load(roots, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not loaded.tokenizer.chat_template:
        raise NotAvailable(f"the judge {model.id!r} is no chat model: its tokenizer has no chat template")
    try:
        generate_way(loaded)
    except InvalidInput as error:
        raise NotAvailable(f"the judge {model.id!r} cannot be asked: {error}") from error
    return loaded


def _answer(judge: LanguageModel, messages: Sequence[Mapping[str, str]], max_tokens: int, graded: bool) -> Reply:

    from latentbench.activations.vocabulary import check_ids, embedding_rows, positions
    from latentbench.interventions.generation import generate

    tokenizer = judge.tokenizer
    try:
        with foreign("the chat template refuses the messages"):
            encoded: Any = tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        ids = encoded["input_ids"][0].tolist()
        check_ids(ids, tokenizer, embedding_rows(judge.model), "the chat template and the messages: ")
    except InvalidInput as error:
        return Reply(None, str(error)[:300])
    encoded, read, room = encoded.to(judge.device), len(ids), positions(judge.model)
    if room is not None and read + max_tokens > room:
        return Reply(None, f"the question has {read} tokens and leaves no room for {max_tokens} more in {room}")
    made = generate(
        judge,
        encoded["input_ids"],
        encoded["attention_mask"],
        max_new_tokens=max_tokens,
        return_dict_in_generate=True,
        output_logits=graded,
    )
    written = made.sequences[0, read:]
    text = str(tokenizer.decode(written, skip_special_tokens=True))
    return Reply(text, None, read, len(written), ones=_ones(tokenizer, written, made.logits) if graded else None)


def _ones(tokenizer: Any, written: Tensor, logits: Sequence[Tensor]) -> dict[int, float]:
    """See `Reply.ones`. written [tokens], logits per token [1, vocabulary]."""
    labels = {token: label for label in ("0", "1") for token in _tokens_of(tokenizer, label)}
    steps, before = [], ""
    for number, step in enumerate(logits[: len(written)]):
        after = str(tokenizer.decode(written[: number + 1], skip_special_tokens=True))
        likely = step[0].double().softmax(0)
        written_as = [(t, label) for t, label in labels.items() if t < len(likely)]
        alone = {label: float(sum(likely[t] for t, own in written_as if own == label)) for label in ("0", "1")}
        steps.append((after[len(before) :], alone))
        before = after
    return ones_of(steps)


def _tokens_of(tokenizer: Any, label: str) -> set[int]:
    """Numbers of the tokens that are the label alone, with or without a space before it."""
    encoded = (tokenizer.encode(text, add_special_tokens=False) for text in (label, f" {label}"))
    return {ids[-1] for ids in encoded if str(tokenizer.decode(ids[-1:])).strip() == label}
