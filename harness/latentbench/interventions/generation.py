"""Writing text with a model, interventions included: plain `generate()`, what may be asked of it, and what ends an answer.

`generate` is transformers' `generate()` with what is stated here and nothing else. A model brings a
`generation_config.json`, and `generate()` fills whatever the caller leaves open from it: beams, penalties, forbidden or
forced tokens, another cache, another form of the result. Answers would then depend on a file beside the weights, and
training, whose rollouts are written by a loop of its own (`latentbench.interventions.rollouts`), would sample another
policy than the one that is evaluated. Only its end tokens are kept, because chat models list several there.

`Stops` is the one rule for what ends an answer, for the rollouts of a training and for an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from latentbench.activations.vocabulary import (
    check_ids,
    embedding_rows,
    end_ids,
    known,
    padding_of,
    positions,
)
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_STATED = ("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "use_cache")
"""Usual in a model's generation config and without consequence: they are about sampling, which callers state in full."""


@torch.no_grad()
def generate(
    lm: LanguageModel,
    ids: Tensor,
    mask: Tensor,
    *,
    ends: Sequence[int] | None = None,
    processors: Sequence[LogitsProcessor] = (),
    criteria: Sequence[StoppingCriteria] = (),
    **stated: Any,
) -> Any:
    """What `generate()` gives for prompts `ids` [B, T] with mask [B, T], padded on the left.

    `ends` are the ids that end a row (default: the model's own), `stated` are fields of transformers' GenerationConfig;
    without any, decoding is greedy. The model is afterwards as it was.
    """
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=sorted(end_ids(lm) if ends is None else ends) or None,
        pad_token_id=padding_of(lm),
        use_cache=True,
        **{"do_sample": False, **stated},
    )
    model: Any = lm.model
    with _without_defaults(model):
        # Looked up now and not bound earlier: an intervention that is switched on replaces the attribute, to learn from the
        # call where the prompts end (`latentbench.interventions.passes`).
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(criteria),
        )


def ignored_generation_settings(lm: LanguageModel) -> dict[str, Json]:
    """Settings of the model's own generation config that would change greedy answers, by name; they are not applied."""
    own: dict[str, Json] = lm.model.generation_config.to_diff_dict()
    neutral: dict[str, Any] = GenerationConfig._get_default_generation_params()  # values that change nothing
    return {
        name: value
        for name, value in sorted(own.items())
        if name not in (*_IDS, *_STATED, "transformers_version", "_from_model_config")
        and value not in (None, False, neutral.get(name))
    }


def prompt_ids(lm: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts; the opening special token is added unless the text brings it.

    Raises InvalidInput where a prompt holds a token that the model's embedding does not know, and for one without any
    token: nothing could be written after it.
    """
    tokenizer: Any = lm.tokenizer
    # Chat templates write the opening token into the text; the tokenizer would put a second one before it.
    bos, rows = tokenizer.bos_token, embedding_rows(lm.model)
    brings = bool(bos) and all(prompt.startswith(bos) for prompt in prompts)
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=not brings)["input_ids"]
    for prompt, row in zip(prompts, ids, strict=True):
        check_ids(row, tokenizer, rows, f"the prompt {prompt[:40]!r}: ")
    if not all(ids):
        raise InvalidInput(
            "a prompt is empty, and the model's tokenizer has no opening token (bos_token) to stand for it"
        )
    return ids


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and mask [B, T] of rows that end together, so that every row's next token is predicted in the last column."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def check_prompts(lm: LanguageModel, prompts: Sequence[str]) -> None:
    """Raises InvalidInput where a prompt cannot be answered: a token the model does not know, or no room for an answer."""
    room_behind(lm.model, list(map(len, prompt_ids(lm, prompts))), 1)


def check_context_length(model: Any, prompt: int, new: int) -> None:
    """Raises InvalidInput where `new` tokens after `prompt` do not all fit into a loaded model's context."""
    room_behind(model, [prompt], new, least=new)


class Stops:
    """The end tokens of a model, and texts that end an answer too."""

    def __init__(self, lm: LanguageModel, texts: Sequence[str] = ()) -> None:
        self._tokenizer: Any = lm.tokenizer
        self._texts = tuple(texts)
        special = {text: self._special(text, embedding_rows(lm.model)) for text in self._texts}
        self.tokens: frozenset[int] = frozenset(end_ids(lm)) | {
            token for token in special.values() if token is not None
        }
        """Ids that end an answer. A text that is a special token ends it as that token, not as text: decoding leaves
        special tokens out, so their text never appears."""
        self.texts: tuple[str, ...] = tuple(text for text, token in special.items() if token is None)
        """The others, found in the text, also where no token border meets theirs."""
        # Every token but a special one is at least a byte, so as many tokens hold any occurrence that ends now; one more
        # because some tokenizers decode the first token of a row without its space.
        self.window = max((len(text.encode()) for text in self.texts), default=0) + 1
        """The most generated tokens that `found` reads of a row."""

    def found(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """For each row of generated ids, whether one of `texts` ends in its last token."""
        if not self.texts or not rows:
            return [False] * len(rows)
        recent = [list(row[-self.window :]) for row in rows]
        tails = self._tokenizer.batch_decode(recent, skip_special_tokens=False)
        return [any(text in tail for text in self.texts) for tail in tails]

    def cut(self, text: str) -> str:
        """`text` up to the first stop text."""
        return text[: min((text.index(stop) for stop in self._texts if stop in text), default=len(text))]

    def _special(self, text: str, rows: int) -> int | None:
        """The id of a special token of that name, if there is one and the model knows it."""
        added = self._tokenizer.added_tokens_decoder
        named = {token.content for token in added.values() if token.special} | set(self._tokenizer.all_special_tokens)
        return known(self._tokenizer.convert_tokens_to_ids(text), rows) if text in named else None


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its generated text holds one of the strings, also where no token border meets theirs."""

    def __init__(self, stops: Stops, prompt: int, rows: int) -> None:
        self.ended: list[int | None] = [None] * rows
        """Tokens a row had generated when a string was found in it."""
        self._stops, self._prompt = stops, prompt

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """[B] bool of `input_ids` [B, T]."""
        going = [row for row, length in enumerate(self.ended) if length is None]
        recent = input_ids[going, max(self._prompt, input_ids.shape[1] - self._stops.window) :]
        found = self._stops.found(recent.tolist())
        for row, holds in zip(going, found, strict=True):
            if holds:
                self.ended[row] = input_ids.shape[1] - self._prompt
        return torch.tensor([length is not None for length in self.ended], device=input_ids.device)


class Drawing(LogitsProcessor):
    """Lets `draw` choose the tokens, [B, 1] of logits [B, vocabulary]. The rest of decoding is told to be greedy."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        self._draw = draw

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores` [B, vocabulary]; returns them with every one but the drawn token's −∞."""
        return torch.full_like(scores, -torch.inf).scatter_(-1, self._draw(scores), 0.0)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """While open, the model's generation config says nothing that `generate()` could fill in."""
    # `generate()` fills in from this attribute even beside a whole configuration as its argument.
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def room_behind(model: Any, lengths: Sequence[int], wanted: int, least: int = 1) -> list[int]:
    """The most tokens, never more than `wanted`, that may follow each of some prompts, which are `lengths` tokens long.

    Raises InvalidInput where fewer than `least` fit behind one of them.
    """
    context = positions(model)
    if context is None:
        return [wanted] * len(lengths)
    if (longest := max(lengths, default=0)) + least > context:
        raise InvalidInput(
            f"a prompt of {longest} tokens leaves no room for {least} more in the context of {context} that "
            f"{type(model).__name__} has; ask for fewer, or shorten such prompts or leave them out"
        )
    return [min(wanted, context - length) for length in lengths]
