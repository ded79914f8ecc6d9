"""Nearest latents of two dictionaries in both directions, tile by tile: a width × width matrix never exists.

Besides the inputs and the results, `nearest` holds one tile of similarities and the two slices of rows it is made of,
however wide the dictionaries are: 4 · (SOURCE_ROWS · TARGET_ROWS + (SOURCE_ROWS + TARGET_ROWS) · d) bytes in float32
times at most 2 for temporaries, which is 150 MB at d = 2,304. One matrix product serves both directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SOURCE_ROWS, TARGET_ROWS = 2048, 4096
"""Latents of either side that are compared at once."""
NOBODY = -1
"""In the place of a latent number: no match."""


class Nearest(NamedTuple):
    """The best of other latents for each latent, descending."""

    indices: Tensor
    """[width, k] int64 latent numbers of the other dictionary; NOBODY where it has fewer than k latents."""
    scores: Tensor
    """[width, k] similarities; −inf beside NOBODY."""


def nearest(source: Tensor, target: Tensor, k: int, *, unit: bool = True) -> tuple[Nearest, Nearest]:
    """For every row of `source` [Ws, d] the k most similar of `target` [Wt, d], and the other way round.

    Similarity is the cosine, or the inner product where not `unit`. A row of zeros has cosine 0 with everything.
    Of equal similarities the earlier latent wins at k = 1. float32, or float64 where both are; on the rows' device.
    """
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    forward, backward = Best(len(source), k, dtype, source.device), Best(len(target), k, dtype, source.device)
    buffer = source.new_empty(min(SOURCE_ROWS, len(source)) * min(TARGET_ROWS, len(target)), dtype=dtype)
    for left in range(0, len(source), SOURCE_ROWS):
        rows = rows_of(source[left : left + SOURCE_ROWS], dtype, unit)
        for top in range(0, len(target), TARGET_ROWS):
            others = rows_of(target[top : top + TARGET_ROWS], dtype, unit)
            tile = torch.mm(rows, others.T, out=buffer[: len(rows) * len(others)].view(len(rows), len(others)))
            forward.add(tile, 1, left, top)
            backward.add(tile, 0, top, left)
    return forward.found(), backward.found()


def pair_cosines(source: Tensor, target: Tensor, indices: Tensor) -> Tensor:
    """[W, k] cosines between each row of `source` [W, d] and the rows of `target` at `indices` [W, k]; 0 at NOBODY."""
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    parts = []
    for start in range(0, len(source), SOURCE_ROWS):
        rows, chosen = (part[start : start + SOURCE_ROWS] for part in (source, indices))
        columns = [rows_of(target[column.clamp_min(0)], dtype, True) for column in chosen.unbind(1)]
        own = rows_of(rows, dtype, True)
        parts.append(torch.stack([(own * column).sum(1) for column in columns], 1) * (chosen != NOBODY))
    return torch.cat(parts)


def rows_of(rows: Tensor, dtype: torch.dtype, unit: bool) -> Tensor:
    """Rows in `dtype`, at unit length where asked for; rows of zeros stay zeros."""
    rows = rows.detach().to(dtype)
    return torch.nn.functional.normalize(rows, dim=1) if unit else rows


class Best:
    """The k best so far of each latent, over tiles."""

    def __init__(self, width: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.scores = torch.full((width, k), -torch.inf, dtype=dtype, device=device)
        self.indices = torch.full((width, k), NOBODY, dtype=torch.int64, device=device)

    def add(self, tile: Tensor, dim: int, start: int, offset: int) -> None:
        """Takes in a tile whose latents begin at `start` and whose other latents, along `dim`, begin at `offset`."""
        k, others = self.scores.shape[1], tile.shape[dim]
        part = slice(start, start + tile.shape[1 - dim])
        if k == 1:
            values, indices = tile.max(dim)
            better = values > self.scores[part, 0]
            self.scores[part, 0] = torch.where(better, values, self.scores[part, 0])
            self.indices[part, 0] = torch.where(better, indices + offset, self.indices[part, 0])
            return
        values, indices = (x if dim == 1 else x.T for x in tile.topk(min(k, others), dim))
        scores = torch.cat([self.scores[part], values], 1)
        self.scores[part], order = scores.topk(k, 1)
        self.indices[part] = torch.cat([self.indices[part], indices + offset], 1).gather(1, order)

    def found(self) -> Nearest:
        return Nearest(self.indices, self.scores)
