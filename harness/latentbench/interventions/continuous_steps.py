"""Continuous batching: a row that is over leaves the batch in the same step, and a waiting prompt takes its place.

Every prompt is read once for all its samples, with the logits of its last token alone. It needs a model all of whose layers
keep keys and values; `latentbench.interventions.writing_ways` finds out.

transformers has continuous batching too (`generate_batch`). It does not serve here: it packs all tokens into one row of a
pass, so that hooks cannot tell whose tokens they see; it draws from one stream for all rows; and without a GPU's kernels it
attends over the tokens of all rows, most of them masked.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentbench.activations.vocabulary import padding_of, positions_in, takes_positions
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.cached_steps import Draw
from latentbench.interventions.generation import left_padded
from latentbench.interventions.intervention import Layout
from latentbench.interventions.row_cache import RowCache, closed_up
from latentbench.interventions.shared_prompts import SharedAttention, check_shareable

_READ_AT_ONCE = 8192
"""Tokens of prompts per pass, padding included."""
_ADMIT = 4
"""Prompts are read once this part of the places is free: few at a time cost as much as many."""


def continuous_steps(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    over: list[bool],
    *,
    places: int,
    samples: int,
    layout: Layout,
    shared: bool,
) -> Iterator[tuple[list[int], list[int]]]:
    """Row numbers and their next tokens, until the caller has marked all rows as `over`, as it has some at the start.

    The rows of a prompt's `samples` are numbered together and begin together; at most `places` rows, or those of one prompt,
    are written at a time. `layout` is told where the prompts end; `shared`: what is kept of a prompt is kept once for all its
    samples. Raises InvalidInput for a model whose layers keep anything but keys and values.
    """
    # Longest first: prompts that are read together have little padding, and the last to begin are the shortest.
    left = [n for n in range(len(prompts)) if not all(over[n * samples : (n + 1) * samples])]
    waiting = deque(sorted(left, key=lambda number: -len(prompts[number])))
    batch = _RunningRows(lm, layout, max(places, samples), samples, shared)
    while waiting or batch.rows:
        free = batch.places - len(batch.rows)
        if waiting and (not batch.rows or free >= max(samples, batch.places // _ADMIT)):
            taken = _next(waiting, prompts, free // samples)
            rows = [(n, sample) for n in range(len(taken)) for sample in range(samples)]
            new = [taken[n] * samples + sample for n, sample in rows]
            some = [place for place, row in enumerate(new) if not over[row]]
            new, rows = [new[place] for place in some], [rows[place] for place in some]
            logits = batch.read([prompts[number] for number in taken], new, rows)
        else:
            new, logits = list(batch.rows), batch.step()
        tokens = draw(logits, new)
        batch.note(tokens)
        yield new, tokens[:, 0].tolist()
        batch.drop([place for place, row in enumerate(batch.rows) if over[row]])


def _next(waiting: deque[int], prompts: Sequence[Sequence[int]], most: int) -> list[int]:
    """The prompts to be read now, taken from those waiting."""
    width = len(prompts[waiting[0]])
    return [waiting.popleft() for _ in range(min(len(waiting), most, max(1, _READ_AT_ONCE // width)))]


class _RunningRows:
    """The rows that are being written."""

    def __init__(self, lm: LanguageModel, layout: Layout, places: int, samples: int, shared: bool) -> None:
        if shared:
            check_shareable(lm)
        self.rows: list[int] = []
        """Their numbers."""
        self.places = places
        self._lm, self._layout = lm, layout
        self._samples, self._shared = samples, shared
        self._cache: RowCache | None = None
        self._attention: SharedAttention | None = None
        none = torch.zeros(0, dtype=torch.long, device=lm.device)
        self._lengths, self._position, self._tokens = none, none, none[:, None]
        self._positions = takes_positions(lm.model)
        # Of a prompt only the last token's logits are drawn from; the others would be most of what its pass needs of memory.
        last = "logits_to_keep" in inspect.signature(lm.model.forward).parameters
        # By its index, since a number would make it a slice, which is not contiguous: 300 times as slow in bfloat16 on CPUs.
        self._last: dict[str, Any] = {"logits_to_keep": torch.tensor([-1], device=lm.device)} if last else {}

    def read(self, prompts: Sequence[Sequence[int]], new: list[int], chosen: Sequence[tuple[int, int]]) -> Tensor:
        """Begins the rows `new`, of these numbers of prompt and sample; returns the logits [rows, vocabulary] of their first tokens."""
        ids, mask = left_padded(prompts, padding_of(self._lm), self._lm.device)
        lengths = mask.sum(1)
        self._layout.prompt_lengths, self._layout.earlier = lengths, None
        # Without the model's configuration no layer forgets what is outside of its window: the mask sees to that.
        cache: Any = DynamicCache()
        logits = self._pass(ids, mask, positions_in(mask), cache)
        if self._cache is None:
            self._cache = RowCache(cache, most=self.places, samples=self._samples, shared=self._shared)
            if self._cache.prompts is not None:
                self._attention = SharedAttention(self._cache, self._cache.prompts)
        self._cache.admit(cache, ids, mask, chosen)
        index = torch.tensor([prompt for prompt, _ in chosen], device=ids.device)
        self.rows += new
        self._lengths = torch.cat([self._lengths, lengths[index]])
        self._position = torch.cat([self._position, lengths[index]])
        return logits[index]

    def note(self, tokens: Tensor) -> None:
        """Takes the next tokens [B, 1] of all rows, or of those that have begun last."""
        kept = self._tokens if len(tokens) < len(self.rows) else self._tokens[:0]
        self._tokens = torch.cat([kept, tokens])

    def step(self) -> Tensor:
        """Reads the last token of every row; returns the logits [rows, vocabulary] of the next."""
        cache: Any = self._cache
        self._layout.prompt_lengths, self._layout.earlier = self._lengths, cache.ids
        mask = cache.append(self._tokens)
        with nullcontext() if self._attention is None else self._attention.during(self._lm.model):
            logits = self._pass(self._tokens, mask, self._position[:, None], cache)
        cache.advance()
        self._position = self._position + 1
        return logits

    def drop(self, gone: Sequence[int]) -> None:
        """Rows at these places leave; the last ones take their places."""
        if not gone or self._cache is None:
            return
        kept = closed_up(gone, len(self.rows))
        self._cache.keep(kept)
        self.rows = [self.rows[place] for place in kept]
        index = torch.tensor(kept, dtype=torch.long, device=self._lm.device)
        self._lengths, self._position, self._tokens = (t[index] for t in (self._lengths, self._position, self._tokens))

    def _pass(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        # Prompts are padded on the left: a model that counts columns would give the same text other positions in each batch.
        more = {"position_ids": positions} if self._positions else {}
        output: Any = self._lm.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more, **self._last
        )
        logits: Tensor = output.logits[:, -1]
        return logits
