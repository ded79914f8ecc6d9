"""A cache of keys and values whose rows come and go: what continuous batching needs and transformers' caches are not.

transformers' default cache makes every layer's keys and values anew in every step, one token longer, and again to drop a
row. Here they stand in buffers with room to grow: all rows write into the same column, a row that begins later has its
prompt right before that column, and where a row ended the last one takes its place. So a row's tokens stand side by side,
as masks of sliding windows need them, and a step copies nothing but what is new.

A pass sees the columns from the oldest token of any row on. What a row does not reach is masked, and finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from latentbench.core.errors import InvalidInput

_GROWTH, _LEAST = 4, 32
"""Buffers are made a quarter longer than what they hold, and by no fewer columns than that."""


@dataclass
class Span:
    """Which part of the buffers [rows, heads, columns, d] is in use: the first `rows`, columns `first` to `end`."""

    rows: int = 0
    first: int = 0
    end: int = 0
    """The column of the next token."""

    def of(self, buffer: Tensor, more: int = 0) -> Tensor:
        """The part of a buffer that is in use, and `more` columns."""
        return buffer[: self.rows, :, self.first : self.end + more]


class _RowLayer(DynamicLayer):
    """One layer's keys and values, for passes over one token of each row."""

    def __init__(self, span: Span, like: Any) -> None:
        super().__init__()
        self._span = span
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        self.keys, self.values = like.keys[:0, :, :0], like.values[:0, :, :0]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes [rows, heads, 1, d] into the next column; returns all columns in use, that one included."""
        span = self._span
        self.keys[: span.rows, :, span.end] = key_states[:, :, 0]
        self.values[: span.rows, :, span.end] = value_states[:, :, 0]
        return span.of(self.keys, 1), span.of(self.values, 1)

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self._span.end - self._span.first


class RowCache(Cache):
    """Keys and values of rows that are being written, with the ids of their tokens."""

    def __init__(self, like: Cache, most: int) -> None:
        """Empty, with layers as `like` has them and room for `most` rows. Raises InvalidInput for layers that keep other things."""
        if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in like.layers):
            raise InvalidInput("not all of its layers keep keys and values of their own")
        self._span, self._most = Span(), most
        self._starts: list[int] = []
        """The column of each row's first token."""
        device = like.layers[0].keys.device
        self._ids = torch.zeros(0, 1, 0, 1, dtype=torch.long, device=device)
        self._real = torch.zeros(0, 1, 0, 1, dtype=torch.bool, device=device)
        layers: Any = [_RowLayer(self._span, layer) for layer in like.layers]
        super().__init__(layers=layers)

    @property
    def ids(self) -> Tensor:
        """[rows, columns in use] the tokens, padding included."""
        return self._span.of(self._ids)[:, 0, :, 0]

    def admit(self, prompts: Cache, ids: Tensor, mask: Tensor, chosen: Sequence[int]) -> None:
        """Adds a row for each number in `chosen` of prompts [prompts, columns] that were read padded on the left."""
        span, width, new = self._span, ids.shape[1], len(chosen)
        if not span.rows:
            span.first, span.end = 0, min(width, self._columns)
        if span.end < width or span.rows + new > len(self._ids):
            self._make(max(self._most, span.rows + new), width)
        places, columns = slice(span.rows, span.rows + new), slice(span.end - width, span.end)
        self._real[places] = False  # whoever stood there before
        index = torch.tensor(chosen, device=ids.device)
        kept: list[Tensor] = [tensor for layer in prompts.layers for tensor in (layer.keys, layer.values)]
        for (owner, name), found in zip(self._buffers(), [*kept, _as_buffer(ids), _as_buffer(mask.bool())], strict=True):
            getattr(owner, name)[places, :, columns] = found[index]
        lengths = mask.sum(1).tolist()
        self._starts += [span.end - lengths[number] for number in chosen]
        span.rows, span.first = span.rows + new, min(self._starts)

    def append(self, tokens: Tensor) -> Tensor:
        """Notes the next token of each row [rows, 1]; returns the mask [rows, columns in use + 1] of a pass over these."""
        span = self._span
        if span.end == self._columns:
            # Room for rows that may still come is kept while most of it is used.
            self._make(len(self._ids) if 2 * span.rows > len(self._ids) else span.rows, 0)
        self._ids[: span.rows, 0, span.end] = tokens
        self._real[: span.rows, 0, span.end] = True
        return span.of(self._real, 1)[:, 0, :, 0]

    def advance(self) -> None:
        """After that pass."""
        self._span.end += 1

    def remove(self, holes: Sequence[int], movers: Sequence[int], left: int) -> None:
        """Puts the rows `movers` into the places `holes`; only the first `left` rows stay."""
        span = self._span
        if holes:
            to, by = (torch.tensor(rows, device=self._ids.device) for rows in (holes, movers))
            for owner, name in self._buffers():
                buffer: Tensor = getattr(owner, name)
                first = span.first if owner is not self else 0  # a later prompt may reach farther back
                buffer[to, :, first : span.end] = buffer[by, :, first : span.end]
            for hole, mover in zip(holes, movers, strict=True):
                self._starts[hole] = self._starts[mover]
        del self._starts[left:]
        span.rows, span.first = left, min(self._starts, default=span.end)

    @property
    def _columns(self) -> int:
        return self._ids.shape[2]

    def _buffers(self) -> Iterator[tuple[Any, str]]:
        """Every buffer, by who has it under what name."""
        for layer in self.layers:
            yield layer, "keys"
            yield layer, "values"
        yield self, "_ids"
        yield self, "_real"

    def _make(self, rows: int, least: int) -> None:
        """New buffers for `rows` rows, with at least `least` columns before the next; unused ones on the left are left out."""
        span = self._span
        used = span.end - span.first if span.rows else 0
        end = max(used, least)
        columns, by = end + max(_LEAST, end // _GROWTH), end - used - span.first
        for owner, name in self._buffers():
            old: Tensor = getattr(owner, name)
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])  # masked is not enough: 0 · NaN is NaN
            new[: span.rows, :, end - used : end] = old[: span.rows, :, span.end - used : span.end]
            setattr(owner, name, new)
        self._starts = [start + by for start in self._starts]
        span.first, span.end = end - used, end


def _as_buffer(table: Tensor) -> Tensor:
    """[rows, columns] as [rows, 1, columns, 1]."""
    return table[:, None, :, None]
