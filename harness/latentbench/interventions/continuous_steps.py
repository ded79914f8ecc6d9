"""Continuous batching: a row that is over leaves the batch in the same step, and a waiting prompt takes its place.

Every prompt is read once for all its samples, with the logits of its last token alone. It needs a model all of whose layers
keep keys and values, `latentbench.interventions.writing_ways` finds out.

transformers has continuous batching too (`generate_batch`). It does not serve here: it packs all rows into one row of a
pass, so that hooks cannot tell whose tokens they see, it draws by itself and not from numbers that belong to a row, and its
paged attention needs a GPU's kernels to be fast.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentbench.activations.vocabulary import padding_of, positions_in, takes_positions
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.cached_steps import Draw
from latentbench.interventions.generation import left_padded
from latentbench.interventions.intervention import Layout
from latentbench.interventions.row_cache import RowCache

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
) -> Iterator[tuple[list[int], list[int]]]:
    """Row numbers and their next tokens, until the caller has marked all rows as `over`, as it has some at the start.

    The rows of a prompt's `samples` are numbered together and begin together; at most `places` rows, or those of one prompt,
    are written at a time. `layout` is told where the prompts end. Raises InvalidInput for a model whose layers keep
    anything but keys and values.
    """
    # Longest first: prompts that are read together have little padding, and the last to begin are the shortest.
    waiting = deque(sorted((n for n in range(len(prompts)) if not all(over[n * samples : (n + 1) * samples])), key=lambda n: -len(prompts[n])))
    batch = _RunningRows(lm, layout, max(places, samples))
    while waiting or batch.rows:
        free = batch.places - len(batch.rows)
        if waiting and (not batch.rows or free >= max(samples, batch.places // _ADMIT)):
            taken = _next(waiting, prompts, free // samples)
            rows = [[row for row in range(n * samples, (n + 1) * samples) if not over[row]] for n in taken]
            new, logits = batch.read([prompts[number] for number in taken], rows)
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

    def __init__(self, lm: LanguageModel, layout: Layout, places: int) -> None:
        self.rows: list[int] = []
        """Their numbers."""
        self.places = places
        self._lm, self._layout, self._cache = lm, layout, None
        none = torch.zeros(0, dtype=torch.long, device=lm.device)
        self._lengths, self._position, self._tokens = none, none, none[:, None]
        self._positions = takes_positions(lm.model)
        # Of a prompt only the last token's logits are drawn from; the others would be most of what its pass needs of memory.
        last = "logits_to_keep" in inspect.signature(lm.model.forward).parameters
        self._last: dict[str, Any] = {"logits_to_keep": 1} if last else {}

    def read(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> tuple[list[int], Tensor]:
        """Begins `rows` of each of some prompts: all their numbers, and the logits [rows, vocabulary] of their first tokens."""
        ids, mask = left_padded(prompts, padding_of(self._lm), self._lm.device)
        lengths = mask.sum(1)
        self._layout.prompt_lengths, self._layout.earlier = lengths, None
        # Without the model's configuration no layer forgets what is outside of its window: the mask sees to that.
        cache: Any = DynamicCache()
        logits = self._pass(ids, mask, positions_in(mask), cache)
        if self._cache is None:
            self._cache = RowCache(cache, self.places)
        chosen = [number for number, own in enumerate(rows) for _ in own]
        self._cache.admit(cache, ids, mask, chosen)
        index, new = torch.tensor(chosen, device=ids.device), [row for own in rows for row in own]
        self.rows += new
        self._lengths = torch.cat([self._lengths, lengths[index]])
        self._position = torch.cat([self._position, lengths[index]])
        return new, logits[index]

    def note(self, tokens: Tensor) -> None:
        """Takes the next tokens [B, 1] of all rows, or of those that have begun last."""
        kept = self._tokens if len(tokens) < len(self.rows) else self._tokens[:0]
        self._tokens = torch.cat([kept, tokens])

    def step(self) -> Tensor:
        """Reads the last token of every row; returns the logits [rows, vocabulary] of the next."""
        cache: Any = self._cache
        self._layout.prompt_lengths, self._layout.earlier = self._lengths, cache.ids
        logits = self._pass(self._tokens, cache.append(self._tokens), self._position[:, None], cache)
        cache.advance()
        self._position = self._position + 1
        return logits

    def drop(self, gone: Sequence[int]) -> None:
        """Rows at these places leave; the last ones take their places."""
        if not gone:
            return
        left, without = len(self.rows) - len(gone), set(gone)
        holes = [place for place in gone if place < left]
        movers = [place for place in range(left, len(self.rows)) if place not in without]
        cache: Any = self._cache
        cache.remove(holes, movers, left)
        kept = list(range(len(self.rows)))
        for hole, mover in zip(holes, movers, strict=True):
            kept[hole] = mover
        del kept[left:]
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
