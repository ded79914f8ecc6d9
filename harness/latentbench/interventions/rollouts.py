"""Sampling many answers at a time: the rollouts of a training, and whatever else is written in bulk.

Written by the loop of `latentbench.interventions.cached_steps` where the model's cache allows that, else by transformers'
`generate()`; or, where it is asked for, by that of `latentbench.interventions.continuous_steps`. Which of them gives what
passes without a cache give is measured on the loaded model. All end an answer by one rule (`Stops`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria

from latentbench.activations.fitting import Pieces, halving, row_bytes, rows_that_fit
from latentbench.activations.vocabulary import padding_of
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.cached_steps import cached_steps
from latentbench.interventions.continuous_steps import continuous_steps
from latentbench.interventions.drawing import drawn
from latentbench.interventions.generation import (
    Drawing,
    Stops,
    generate,
    left_padded,
    prompt_ids,
    room_behind,
)
from latentbench.interventions.intervention import Layout
from latentbench.interventions.writing_ways import ContinuousWay, RolloutWay, continuous_way, rollout_way


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's end tokens."""
    continuous: bool = False
    """Whether rows that are over make room for others at once, and every answer has random numbers of its own; where the
    model's cache does not allow that, answers are written as without it."""


@dataclass(frozen=True)
class Answer:
    """What was written after one prompt."""

    ids: list[int]
    """Generated tokens, the end token included."""
    text: str
    """Without special tokens and from the first stop text on cut off."""
    truncated: bool
    """Whether it did not end by itself."""


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
    prompts, samples and `rows` are needed to get it again, and memory for them: where it runs out, fewer prompts are written
    at a time. An evaluation, whose answers are kept one by one, seeds every
    row instead and goes through `generate`. With `sampling.continuous` every row has numbers of its own, so that an answer
    depends on the generator and its row alone, up to the rounding of the logits.
    """
    if sampling.continuous and prompts and (found := continuous_way(lm)):
        ids = [[*row, *ending] for row in prompt_ids(lm, prompts)]
        return _Batch(lm, sampling, samples, generator, layout or Layout()).continuous(found, ids, rows)
    done: list[Answer] = []
    per_batch, layout = max(1, rows // samples), layout or Layout()  # in prompts: samples of one are written together
    way = rollout_way(lm)
    for first in range(0, len(prompts), per_batch):
        ids = [[*row, *ending] for row in prompt_ids(lm, prompts[first : first + per_batch])]
        batch = _Batch(lm, sampling, samples, generator, layout)
        pieces = Pieces(batch.planned(ids))
        for written in pieces.run(batch.cached if way == "cached" else partial(batch.generated, way), ids):
            done += written
    return done


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Next tokens [B, 1] from logits [B, vocabulary]: softmax(logits / temperature), or the most likely at temperature 0."""
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    # In float32: rounded to bfloat16, every probability would be off by up to 0.4 %.
    return torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)


@contextmanager
def _put_back(generator: torch.Generator | None) -> Iterator[None]:
    """Where the body raises, the generator is afterwards as it was: a second attempt draws what the first did."""
    state = None if generator is None else generator.get_state()
    try:
        yield
    except BaseException:
        if generator is not None and state is not None:
            generator.set_state(state)
        raise


@dataclass(frozen=True)
class _Batch:
    """How prompts that are written together are continued; all of it but the prompts."""

    lm: LanguageModel
    sampling: Sampling
    samples: int
    generator: torch.Generator | None
    layout: Layout

    def planned(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many of the prompts are tried at once."""
        # What is sampled depends on what it is written with, so where running out of memory can be survived it is risked.
        if self.sampling.temperature and self.lm.device.type == "cuda":
            return len(prompts)
        return self._fitting(prompts, len(prompts))

    def _fitting(self, prompts: Sequence[Sequence[int]], most: int) -> int:
        """How many prompts memory should suffice for, and no more than `most`."""
        need, longest, new = row_bytes(self.lm), max(map(len, prompts)), self.sampling.max_new_tokens
        # A prompt is read once, with the logits of all its tokens; what is kept of it is kept for every sample.
        each = need.reading(longest, longest) + self.samples * need.writing(longest, new)
        return rows_that_fit(each, most, self.lm.device)

    def continuous(self, way: ContinuousWay, prompts: Sequence[Sequence[int]], rows: int) -> list[Answer]:
        """Answers by continuous batching; what is over when memory runs out stays, the others are begun again."""
        written = _Written(self.lm, self._most(prompts), self.sampling.stop)
        device = None if self.generator is None else self.generator.device
        seed = int(torch.randint(2**62, (), generator=self.generator, device=device))

        def write(at_once: int) -> None:
            written.begin_again()
            numbers = _RowNumbers(seed, self.lm.device)

            def draw(logits: Tensor, drawn_for: Sequence[int]) -> Tensor:
                return drawn(logits, self.sampling.temperature, numbers.next(drawn_for))

            limits: Any = {"places": at_once * self.samples, "samples": self.samples, "shared": way == "shared"}
            for some, tokens in continuous_steps(self.lm, prompts, draw, written.over, layout=self.layout, **limits):
                written.add(some, tokens)

        halving(write, self._fitting(prompts, max(1, min(len(prompts), rows // self.samples))))
        return written.answers()

    def cached(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """Answers by our own steps."""
        written = _Written(self.lm, self._most(prompts), self.sampling.stop)
        limits = {"most": self.sampling.max_new_tokens, "samples": self.samples}
        with _put_back(self.generator):
            steps = cached_steps(
                self.lm, prompts, lambda logits, _: self._draw(logits), written.over, layout=self.layout, **limits
            )
            for rows, tokens in steps:
                written.add(rows, tokens)
        return written.answers()

    def generated(self, way: RolloutWay, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """Answers by transformers' `generate()`."""
        answered: dict[int, list[Answer]] = {}
        with _put_back(self.generator):
            for numbers in self._together(way, prompts):
                made = iter(self._generated([prompts[number] for number in numbers]))
                answered |= {number: [next(made) for _ in range(self.samples)] for number in numbers}
        return [answer for number in range(len(prompts)) for answer in answered[number]]

    def _together(self, way: RolloutWay, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Numbers of the prompts that one call may hold."""
        groups: dict[int, list[int]] = {}
        for number, room in enumerate(self._most(prompts)[:: self.samples]):
            # A row that is over goes on until all are, so it must not be one whose context is full before the others'.
            alone = way == "equal lengths" or room < self.sampling.max_new_tokens
            groups.setdefault(len(prompts[number]) if alone else 0, []).append(number)
        return list(groups.values())

    def _generated(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        most = self._most(prompts)
        written = _Written(self.lm, most, self.sampling.stop)
        rows = [prompt for prompt in prompts for _ in range(self.samples)]
        ids, mask = left_padded(rows, padding_of(self.lm), self.lm.device)
        self.layout.prompt_lengths = mask.sum(1)
        drawing, ending = Drawing(self._draw), _Ending(written)
        generate(self.lm, ids, mask, ends=(), processors=[drawing], criteria=[ending], max_new_tokens=max(most))
        return written.answers()

    def _most(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """The most tokens of each row."""
        room = room_behind(self.lm.model, list(map(len, prompts)), self.sampling.max_new_tokens)
        return [tokens for tokens in room for _ in range(self.samples)]

    def _draw(self, logits: Tensor) -> Tensor:
        return _drawn(logits, self.sampling.temperature, self.generator)


class _RowNumbers:
    """Random numbers in [0, 1), a stream for each row: the n-th belongs to its n-th token."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._streams: dict[int, np.random.Generator] = {}

    def next(self, rows: Sequence[int]) -> Tensor:
        """[B] float64 the next number of each of `rows`."""
        for row in rows:
            if row not in self._streams:
                self._streams[row] = np.random.Generator(np.random.Philox(key=[self._seed, row]))
        return torch.tensor([self._streams[row].random() for row in rows], dtype=torch.float64).to(self._device)


class _Written:
    """What has been written of each row, and which rows are over."""

    def __init__(self, lm: LanguageModel, most: Sequence[int], stop: Sequence[str]) -> None:
        self.over = [False] * len(most)
        self._tokenizer, self._most, self._stops = lm.tokenizer, most, Stops(lm, stop)
        self._rows: list[list[int]] = [[] for _ in most]
        self._stopped = [False] * len(most)

    def add(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Takes the next token of each of `rows`."""
        # A row that is over stays in the batch until enough are to be dropped; what it goes on to write is not its answer.
        going = [(row, token) for row, token in zip(rows, tokens, strict=True) if not self.over[row]]
        for row, token in going:
            self._rows[row].append(token)
        found = self._stops.found([self._rows[row] for row, _ in going])
        for (row, token), holds in zip(going, found, strict=True):
            self._stopped[row] = token in self._stops.tokens or holds
            self.over[row] = self._stopped[row] or len(self._rows[row]) == self._most[row]

    def begin_again(self) -> None:
        """Forgets what has been written of rows that are not over."""
        self._rows = [tokens if over else [] for tokens, over in zip(self._rows, self.over, strict=True)]

    def answers(self) -> list[Answer]:
        """The answers of all rows."""
        # Decoded whole and not token by token, since characters may be spread over tokens.
        texts = self._tokenizer.batch_decode(self._rows, skip_special_tokens=True)
        return [
            Answer(ids, self._stops.cut(text), not by_itself)
            for ids, text, by_itself in zip(self._rows, texts, self._stopped, strict=True)
        ]


class _Ending(StoppingCriteria):
    """Tells `generate()` which rows are over."""

    def __init__(self, written: _Written) -> None:
        self._written = written

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """[B] bool of `input_ids` [B, T]."""
        self._written.add(range(len(input_ids)), input_ids[:, -1].tolist())
        return torch.tensor(self._written.over, device=input_ids.device)
