"""Sampling answers to prompts, many at a time.

Every prompt is read once for all its samples, and rows that have ended are dropped: in a batch of answers of very
different length most of the work of a plain batched `generate()` is for rows that are over. It needs the default cache of
transformers, which every attention-only decoder has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.protocols import LanguageModel
from harness.activations.capture import last_position, positions_in, takes_positions
from harness.errors import InvalidInput
from harness.steering.intervention import Layout

_KEEP = 0.8  # rows are dropped once so few of them are still being written


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's end token."""


@dataclass(frozen=True)
class Answer:
    """What was written after one prompt."""

    ids: list[int]
    """Generated tokens, the end token included."""
    text: str
    """Without special tokens and from the first stop text on cut off."""
    truncated: bool
    """Whether it did not end by itself."""


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts; the opening special token is added unless the text brings it.

    Raises InvalidInput for a prompt without any token: nothing could be written after it.
    """
    bos = tokenizer.bos_token
    brings = bool(bos) and all(prompt.startswith(bos) for prompt in prompts)
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=not brings)["input_ids"]
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

    `ending` are token ids to append to every prompt: text would not always come back as the same tokens.

    `generator` (on the model's device) draws; `layout` is that of interventions that are switched on. The model is used
    as it is, hooks included.
    """
    done: list[Answer] = []
    per_batch = max(1, rows // samples)
    for first in range(0, len(prompts), per_batch):
        ids = [[*row, *ending] for row in prompt_ids(lm.tokenizer, prompts[first : first + per_batch])]
        _check_room(lm.model, max(map(len, ids)), sampling.max_new_tokens)
        done += _batch(lm, ids, sampling, samples, generator, layout or Layout())
    return done


def end_tokens(lm: LanguageModel) -> set[int]:
    """Tokens that end an answer."""
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return {int(end) for end in (*ends, lm.tokenizer.eos_token_id) if end is not None}


def padding_token(lm: LanguageModel) -> int:
    """What fills up shorter rows; never attended to."""
    pad = lm.tokenizer.pad_token_id
    return int(pad) if isinstance(pad, int) else min(end_tokens(lm), default=0)


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and mask [B, T] of rows that end together."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _check_room(model: Any, prompt: int, answer: int) -> None:
    """Raises InvalidInput where the model would come to the end of its positions."""
    room = last_position(model)
    if room is not None and prompt + answer > room:
        raise InvalidInput(
            f"a prompt of {prompt} tokens leaves no room for {answer} new ones in the model's context of {room}; "
            "ask for fewer new tokens, or leave long prompts out"
        )


def _batch(
    lm: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator | None,
    layout: Layout,
) -> list[Answer]:
    written: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    ended = [False] * len(written)
    ends, stops = end_tokens(lm), _Stops(lm.tokenizer, sampling.stop)
    for rows, tokens in _steps(lm, prompts, sampling, samples, generator, layout, ended):
        for row, token in zip(rows, tokens, strict=True):
            if not ended[row]:
                written[row].append(token)
                ended[row] = token in ends or stops.hit(written[row])
    texts = lm.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Answer(ids, stops.cut(text), not over) for ids, text, over in zip(written, texts, ended, strict=True)]


def _steps(
    lm: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator | None,
    layout: Layout,
    ended: list[bool],
) -> Iterator[tuple[list[int], list[int]]]:
    """Row numbers and their next tokens, step by step; the caller marks rows that have `ended`."""
    ids, mask = left_padded(prompts, padding_token(lm), lm.device)
    position = mask.sum(1)
    layout.prompt_lengths = position
    run = _Runner(lm.model)
    output = run(ids, mask, positions_in(mask), None)
    cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    mask, position = mask.repeat_interleave(samples, 0), position.repeat_interleave(samples, 0)
    layout.prompt_lengths = position
    rows = list(range(len(ended)))
    for step in range(sampling.max_new_tokens):
        tokens = _draw(logits, sampling.temperature, generator)
        yield rows, tokens[:, 0].tolist()
        alive = [number for number, row in enumerate(rows) if not ended[row]]
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
        position, logits = position + 1, output.logits[:, -1]


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


class _Stops:
    """Texts that end an answer."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tail = max((len(stop.encode()) for stop in stops), default=0)

    def hit(self, ids: list[int]) -> bool:
        """Whether the end of `ids` holds a stop text; no token is shorter than a byte."""
        if not self._stops:
            return False
        tail = self._tokenizer.decode(ids[-self._tail :], skip_special_tokens=True)
        return any(stop in tail for stop in self._stops)

    def cut(self, text: str) -> str:
        """`text` up to the first stop text."""
        return text[: min((text.index(stop) for stop in self._stops if stop in text), default=len(text))]
