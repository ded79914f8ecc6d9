"""Writing text with a model, interventions included: plain `generate()`, and sampling many answers at a time.

`generate` is transformers' `generate()` with what is stated here and nothing else. A model brings a
`generation_config.json`, and `generate()` fills whatever the caller leaves open from it: beams, penalties, forbidden or
forced tokens, another cache, another form of the result. Answers would then depend on a file beside the weights, and
training, whose rollouts are written by a loop of its own (`answers`), would sample another policy than the one that is
evaluated. Only its end tokens are kept, because chat models list several there.

`answers` samples many answers at a time. Every prompt is read once for all its samples, and rows that have ended are
dropped: in a batch of answers of very different length most of the work of a plain batched `generate()` is for rows that
are over. It needs the default cache of transformers, which every attention-only decoder has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from latentbench.activations.vocabulary import (
    check_ids,
    embedding_rows,
    end_ids,
    padding_of,
    positions,
    positions_in,
    takes_positions,
)
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Layout
from latentbench.interventions.stops import Stops

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
        return model.generate(  # looked up here, because interventions may watch it
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(criteria),
        )


def ignored_generation_settings(lm: LanguageModel) -> dict[str, Json]:
    """Settings of the model's own generation config that would change greedy answers, by name; they are not applied."""
    own: dict[str, Json] = lm.model.generation_config.to_diff_dict()
    neutral: dict[str, Any] = GenerationConfig._get_default_generation_params()
    return {
        name: value
        for name, value in sorted(own.items())
        if name not in (*_IDS, *_STATED, "transformers_version", "_from_model_config")
        and value not in (None, False, neutral.get(name))
    }


def check_context_length(model: Any, prompt: int, new: int) -> None:
    """Raises InvalidInput where `new` tokens after `prompt` do not fit into a loaded model's context."""
    room = positions(model)
    if room is not None and prompt + new > room:
        raise InvalidInput(
            f"{new} new tokens after a prompt of {prompt} do not fit into the context of {room} that "
            f"{type(model).__name__} has; ask for fewer, or shorten the prompts"
        )


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """While open, the model's generation config says nothing that `generate()` could fill in."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


_KEEP = 0.8  # rows are dropped once so few of them are still being written


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's end tokens."""


@dataclass(frozen=True)
class Answer:
    """What was written after one prompt."""

    ids: list[int]
    """Generated tokens, the end token included."""
    text: str
    """Without special tokens and from the first stop text on cut off."""
    truncated: bool
    """Whether it did not end by itself."""


def prompt_ids(lm: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts; the opening special token is added unless the text brings it.

    Raises InvalidInput where a prompt holds a token that the model's embedding does not know, and for one without any
    token: nothing could be written after it.
    """
    tokenizer: Any = lm.tokenizer
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


@torch.no_grad()
def answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    layout: Layout | None = None,
    rows: int = 256,
    ending: Sequence[int] = (),
) -> list[Answer]:
    """`samples` answers to each prompt, those of one prompt together; at most `rows` are written at a time.

    `ending` are token ids to append to every prompt: text would not always come back as the same tokens. Where the model's
    context is full an answer ends, truncated; InvalidInput where a prompt leaves no room for a single token.

    `generator` (on the model's device) draws; `layout` is that of interventions that are switched on. The model is used
    as it is, hooks included.
    """
    done: list[Answer] = []
    per_batch = max(1, rows // samples)
    for first in range(0, len(prompts), per_batch):
        ids = [[*row, *ending] for row in prompt_ids(lm, prompts[first : first + per_batch])]
        done += _batch(lm, ids, sampling, samples, generator, layout or Layout())
    return done


def check_prompts(lm: LanguageModel, prompts: Sequence[str]) -> None:
    """Raises InvalidInput where a prompt cannot be answered: a token the model does not know, or no room for an answer."""
    _room(lm, prompt_ids(lm, prompts), 1)


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and mask [B, T] of rows that end together."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _batch(
    lm: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator | None,
    layout: Layout,
) -> list[Answer]:
    most = [room for room in _room(lm, prompts, sampling.max_new_tokens) for _ in range(samples)]
    written: list[list[int]] = [[] for _ in most]
    stopped, over = [False] * len(most), [False] * len(most)
    stops = Stops(lm, sampling.stop)
    for rows, tokens in _steps(lm, prompts, sampling, samples, generator, layout, over):
        going = [(row, token) for row, token in zip(rows, tokens, strict=True) if not over[row]]
        for row, token in going:
            written[row].append(token)
        found = stops.found([written[row] for row, _ in going])
        for (row, token), holds in zip(going, found, strict=True):
            stopped[row] = token in stops.tokens or holds
            over[row] = stopped[row] or len(written[row]) == most[row]
    texts = lm.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [
        Answer(ids, stops.cut(text), not by_itself)
        for ids, text, by_itself in zip(written, texts, stopped, strict=True)
    ]


def _room(lm: LanguageModel, prompts: Sequence[Sequence[int]], wanted: int) -> list[int]:
    """The most tokens that may follow each prompt. Raises InvalidInput where there is room for none."""
    context = positions(lm.model)
    room = [wanted if context is None else min(wanted, context - len(prompt)) for prompt in prompts]
    if min(room, default=1) < 1:
        raise InvalidInput(
            f"a prompt of {max(map(len, prompts))} tokens leaves no room for an answer in the model's context of "
            f"{context}; leave such prompts out or shorten them"
        )
    return room


def _steps(
    lm: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator | None,
    layout: Layout,
    over: list[bool],
) -> Iterator[tuple[list[int], list[int]]]:
    """Row numbers and their next tokens, step by step; the caller marks rows that are `over`."""
    ids, mask = left_padded(prompts, padding_of(lm), lm.device)
    position = mask.sum(1)
    layout.prompt_lengths = position
    run = _Runner(lm.model)
    output = run(ids, mask, positions_in(mask), None)
    cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    mask, position = mask.repeat_interleave(samples, 0), position.repeat_interleave(samples, 0)
    layout.prompt_lengths = position
    rows, last = list(range(len(over))), (positions(lm.model) or sys.maxsize) - 1
    for step in range(sampling.max_new_tokens):
        tokens = _draw(logits, sampling.temperature, generator)
        yield rows, tokens[:, 0].tolist()
        alive = [number for number, row in enumerate(rows) if not over[row]]
        if not alive or step + 1 == sampling.max_new_tokens:
            break
        if len(alive) < _KEEP * len(rows):
            kept = torch.tensor(alive, device=mask.device)
            cache.batch_select_indices(kept)
            mask, position, tokens = mask[kept], position[kept], tokens[kept]
            layout.prompt_lengths = layout.prompt_lengths[kept]
            rows = [rows[number] for number in alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        output = run(tokens, mask, position[:, None], cache)
        # Rows that are over and not dropped yet stay within the context; nobody reads what they write.
        position, logits = (position + 1).clamp_max(last), output.logits[:, -1]


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Next tokens [B, 1] from logits [B, vocabulary]."""
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)


class _Runner:
    """Forward passes with a cache, for models with and without `position_ids`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._positions = takes_positions(model)

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Any:
        more = {"position_ids": positions} if self._positions else {}
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        if not hasattr(output.past_key_values, "batch_select_indices"):
            raise InvalidInput(f"{type(self._model).__name__} keeps another cache than transformers' default one")
        return output
