"""A cache of keys and values whose rows come and go: what continuous batching needs and transformers' caches are not.

transformers' default cache makes every layer's keys and values anew in every step, one token longer, and again to drop a
row. Here they stand in buffers with room to grow: all rows write into the same column, a row that begins later has its
prompt right before that column, and where a row ended the last one takes its place. So a row's tokens stand side by side,
as masks of sliding windows need them, and a step copies nothing but what is new.

What of a prompt all its samples read can be kept once for all of them (`shared`): reading keys and values is most of what a
step with many rows costs. `latentbench.interventions.shared_prompts` then does the attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from latentbench.core.errors import InvalidInput

_GROWTH, _LEAST = 2, 32
"""Buffers are made longer than what they hold by half of it, and by no fewer columns than that."""


def closed_up(gone: Iterable[int], count: int) -> list[int]:
    """Which of `count` places are left without those that are `gone`, where the last ones take the others' places."""
    without = set(gone)
    left = count - len(without)
    movers = iter([place for place in range(left, count) if place not in without])
    return [next(movers) if place in without else place for place in range(left)]


class Columns:
    """Tensors [rows, heads, columns, d] that are filled alike: every row ends in the same column.

    A row is in use from its own start on. What is before that is to be masked, and finite.
    """

    def __init__(self, like: Sequence[Tensor], most: int, *, grow: bool = True) -> None:
        """Empty, with room for `most` rows, of tensors `like` some; those that do not `grow` have no room to be appended to."""
        self.rows, self.first, self.end = 0, 0, 0
        """The rows there are, the column of the oldest token of any, and that of the next token."""
        self._most, self._grow = most, grow
        self._tensors = [tensor[:0, :, :0] for tensor in like]
        self._starts: list[int] = []
        self._on_device: Tensor | None = None

    def admit(self, found: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Adds rows [new, heads, width, d], of which the last `lengths` columns are in use."""
        width, new = found[0].shape[2], len(lengths)
        if not self.rows:
            self.first = self.end = min(width, self._columns)
        if self.end < width or self.rows + new > len(self._tensors[0]):
            self._make(max(self._most, self.rows + new), width)
        for tensor, rows in zip(self._tensors, found, strict=True):
            tensor[self.rows : self.rows + new, :, self.end - width : self.end] = rows
        self._set(self.rows + new, [*self._starts, *(self.end - length for length in lengths)])

    def open(self) -> None:
        """Makes room for the next column."""
        if self.end == self._columns:
            # Room for rows that may still come is kept while most of it is used.
            have = len(self._tensors[0])
            self._make(have if 2 * self.rows > have else self.rows, 0)

    def write(self, number: int, new: Tensor) -> None:
        """Puts [rows, heads, d] into the next column of a tensor."""
        self._tensors[number][: self.rows, :, self.end] = new

    def close(self) -> None:
        """The next column is full."""
        self.end += 1

    def keep(self, kept: Sequence[int]) -> None:
        """Only the rows `kept` stay, in this order (`closed_up`)."""
        moved = [(place, old) for place, old in enumerate(kept) if place != old]
        if moved:
            to, by = torch.tensor(moved, device=self._tensors[0].device).T
            for tensor in self._tensors:
                tensor[to, :, self.first : self.end] = tensor[by, :, self.first : self.end]
        self._set(len(kept), [self._starts[old] for old in kept])

    def part(self, number: int, more: int = 0) -> Tensor:
        """What of a tensor is in use by any row [rows, heads, columns, d], and `more` columns."""
        return self._tensors[number][: self.rows, :, self.first : self.end + more]

    def mask(self, more: int = 0) -> Tensor:
        """[rows, columns] bool: which columns of `part` each row uses."""
        device = self._tensors[0].device
        if self._on_device is None:
            self._on_device = torch.tensor(self._starts, device=device)[:, None]
        return torch.arange(self.first, self.end + more, device=device) >= self._on_device

    @property
    def _columns(self) -> int:
        return self._tensors[0].shape[2]

    def _set(self, rows: int, starts: list[int]) -> None:
        self.rows, self._starts, self._on_device = rows, starts, None
        self.first = min(starts, default=self.end)

    def _make(self, rows: int, least: int) -> None:
        """New tensors of `rows` rows, with at least `least` columns before the next; those that no row uses are left out."""
        used = self.end - self.first if self.rows else 0
        end = max(used, least)
        columns = end + max(_LEAST, end // _GROWTH) if self._grow else end
        for number, old in enumerate(self._tensors):
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])  # masked is not enough: 0 · NaN is NaN
            new[: self.rows, :, end - used : end] = old[: self.rows, :, self.end - used : self.end]
            self._tensors[number] = new
        by, self.end = end - self.end, end
        self._set(self.rows, [start + by for start in self._starts])


class _RowLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, for passes over one token of each row."""

    def __init__(self, cache: RowCache, number: int, like: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache, self._number = cache, number
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes [rows, heads, 1, d] into the next column; returns the columns of the rows, that one included."""
        own, number = self._cache.own, 2 * self._number
        own.write(number, key_states[:, :, 0])
        own.write(number + 1, value_states[:, :, 0])
        return own.part(number, 1), own.part(number + 1, 1)

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self._cache.text.end - self._cache.text.first


class RowCache(Cache):
    """Keys and values of rows that are being written, with the ids of their tokens."""

    def __init__(self, like: Cache, *, most: int, samples: int, shared: bool) -> None:
        """Empty, for `most` rows, with layers as `like` has them. Raises InvalidInput for layers that keep other things.

        `shared`: the `samples` rows of a prompt share what is kept of it.
        """
        if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in like.layers):
            raise InvalidInput("not all of its layers keep keys and values of their own")
        kept = _kept(like)
        none = torch.zeros(0, 1, 0, 1, dtype=torch.long, device=kept[0].device)
        self.text = Columns([none], most)
        """Ids of whole texts."""
        self.own = Columns(kept, most)
        """Keys and values, of layer after layer: of what has been written or, where prompts are not shared, of all."""
        self.prompts = Columns(kept, -(-most // samples), grow=False) if shared else None
        self.members: list[tuple[int, int]] = []
        """For every row the place of its prompt, and the row's number among its samples."""
        self.samples = samples
        self.version = 0
        """Rises whenever rows come or go."""
        layers: Any = [_RowLayer(self, number, layer) for number, layer in enumerate(like.layers)]
        super().__init__(layers=layers)

    @property
    def ids(self) -> Tensor:
        """[rows, columns] the tokens, padding included."""
        return self.text.part(0)[:, 0, :, 0]

    def admit(self, prompts: Cache, ids: Tensor, mask: Tensor, chosen: Sequence[tuple[int, int]]) -> None:
        """Adds rows of prompts [prompts, columns] that were read padded on the left: numbers of prompt and sample."""
        lengths: list[int] = mask.sum(1).tolist()
        index = torch.tensor([prompt for prompt, _ in chosen], device=ids.device)
        each = [lengths[prompt] for prompt, _ in chosen]
        self.text.admit([ids[index][:, None, :, None]], each)
        if self.prompts is None:
            self.own.admit([kept[index] for kept in _kept(prompts)], each)
        else:
            self.members += [(self.prompts.rows + prompt, sample) for prompt, sample in chosen]
            self.prompts.admit(_kept(prompts), lengths)
            self.own.admit([kept[index, :, :0] for kept in _kept(prompts)], [0] * len(chosen))
        self.version += 1

    def append(self, tokens: Tensor) -> Tensor:
        """Notes the next token of each row [rows, 1]; returns the mask [rows, columns + 1] of a pass over these."""
        self.text.open()
        self.own.open()
        self.text.write(0, tokens[:, :, None])
        return self.text.mask(1)

    def advance(self) -> None:
        """After that pass."""
        self.text.close()
        self.own.close()

    def keep(self, kept: Sequence[int]) -> None:
        """Only the rows `kept` stay, in this order (`closed_up`)."""
        self.text.keep(kept)
        self.own.keep(kept)
        if self.prompts is not None:
            self._keep_prompts([self.members[old] for old in kept], self.prompts)
        self.version += 1

    def _keep_prompts(self, members: list[tuple[int, int]], prompts: Columns) -> None:
        read = {place for place, _ in members}
        kept = closed_up(set(range(prompts.rows)) - read, prompts.rows)
        if len(kept) < prompts.rows:
            prompts.keep(kept)
        now = {old: place for place, old in enumerate(kept)}
        self.members = [(now[place], sample) for place, sample in members]


def _kept(cache: Cache) -> list[Tensor]:
    """Keys and values, of layer after layer."""
    layers: Any = cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]
