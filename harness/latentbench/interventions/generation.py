"""Writing text with a model, interventions included: plain `generate()`, many sampled answers at a time, and what ends one.

`generate` is transformers' `generate()` with what is stated here and nothing else. A model brings a
`generation_config.json`, and `generate()` fills whatever the caller leaves open from it: beams, penalties, forbidden or
forced tokens, another cache, another form of the result. Answers would then depend on a file beside the weights, and
training, whose rollouts are written by a loop of its own (`answers`), would sample another policy than the one that is
evaluated. Only its end tokens are kept, because chat models list several there.

`answers` samples many answers at a time. Every prompt is read once for all its samples, and rows that have ended are
dropped: in a batch of answers of very different length most of the work of a plain batched `generate()` is for rows that
are over. It needs the default cache of transformers, which every attention-only decoder has.

`Stops` is the one rule for what ends an answer, for the rollouts of a training and for an evaluation.
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
    known,
    padding_of,
    positions,
    positions_in,
    takes_positions,
)
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Layout

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

    `generator` (on the model's device) draws; `layout` is that of interventions that are switched on, and is told here
    where the prompts end. The model is used as it is, hooks included.

    All rows of a batch share the generator, so a sampled answer depends on what it is written together with: the same
    prompts, samples and `rows` are needed to get it again. An evaluation, whose answers are kept one by one, seeds every
    row instead and goes through `generate`.
    """
    done: list[Answer] = []
    per_batch = max(1, rows // samples)  # in prompts; the samples of one prompt are always written together
    for first in range(0, len(prompts), per_batch):
        ids = [[*row, *ending] for row in prompt_ids(lm, prompts[first : first + per_batch])]
        done += _batch(lm, ids, sampling, samples, generator, layout or Layout())
    return done


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and mask [B, T] of rows that end together, so that every row's next token is predicted in the last column."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def check_prompts(lm: LanguageModel, prompts: Sequence[str]) -> None:
    """Raises InvalidInput where a prompt cannot be answered: a token the model does not know, or no room for an answer."""
    _room(lm.model, list(map(len, prompt_ids(lm, prompts))), 1)


def check_context_length(model: Any, prompt: int, new: int) -> None:
    """Raises InvalidInput where `new` tokens after `prompt` do not all fit into a loaded model's context."""
    _room(model, [prompt], new, least=new)


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


def _room(model: Any, lengths: Sequence[int], wanted: int, least: int = 1) -> list[int]:
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


def _batch(
    lm: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    samples: int,
    generator: torch.Generator | None,
    layout: Layout,
) -> list[Answer]:
    """Answers to prompts that are written together, those of one prompt side by side."""
    room = _room(lm.model, list(map(len, prompts)), sampling.max_new_tokens)
    most = [tokens for tokens in room for _ in range(samples)]
    written: list[list[int]] = [[] for _ in most]
    stopped, over = [False] * len(most), [False] * len(most)
    stops = Stops(lm, sampling.stop)
    for rows, tokens in _steps(lm, prompts, sampling, samples, generator, layout, over):
        # A row that is over stays in the batch until enough are to be dropped; what it goes on to write is not its answer.
        going = [(row, token) for row, token in zip(rows, tokens, strict=True) if not over[row]]
        for row, token in going:
            written[row].append(token)
        found = stops.found([written[row] for row, _ in going])
        for (row, token), holds in zip(going, found, strict=True):
            stopped[row] = token in stops.tokens or holds
            over[row] = stopped[row] or len(written[row]) == most[row]
    # Decoded whole and not token by token, since characters may be spread over tokens.
    texts = lm.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [
        Answer(ids, stops.cut(text), not by_itself)
        for ids, text, by_itself in zip(written, texts, stopped, strict=True)
    ]


_KEEP = 0.8
"""Rows are dropped once no more than this share of them is still being written: dropping copies the whole cache, so it
must save more steps of dead rows than it costs."""


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
    position = mask.sum(1)  # of the next token: as many real tokens stand before it
    layout.prompt_lengths = position
    run = _CachedForward(lm.model)
    output = run(ids, mask, positions_in(mask), None)
    # The prompt is read once; its keys, values and logits are then repeated for every sample of it, as if each had read it.
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
            break  # before the pass whose logits nobody would draw from
        if len(alive) < _KEEP * len(rows):
            kept = torch.tensor(alive, device=mask.device)
            cache.batch_select_indices(kept)
            mask, position, tokens = mask[kept], position[kept], tokens[kept]
            # Hooks of an intervention tell prompt from answer row by row, so they must lose the same rows.
            layout.prompt_lengths = layout.prompt_lengths[kept]
            rows = [rows[number] for number in alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        output = run(tokens, mask, position[:, None], cache)
        # Rows that are over and not dropped yet stay within the context; nobody reads what they write.
        position, logits = (position + 1).clamp_max(last), output.logits[:, -1]


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Next tokens [B, 1] from logits [B, vocabulary]: softmax(logits / temperature), or the most likely at temperature 0."""
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    # In float32: rounded to bfloat16, every probability would be off by up to 0.4 %.
    return torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)


class _CachedForward:
    """Forward passes with a cache, for models with and without `position_ids`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._takes_positions = takes_positions(model)

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Any:
        # Prompts are padded on the left: a model that counts columns would give the same text other positions in each batch.
        more = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        if not hasattr(output.past_key_values, "batch_select_indices"):
            raise InvalidInput(f"{type(self._model).__name__} keeps another cache than transformers' default one")
        return output
