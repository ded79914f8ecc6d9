"""The tokens on which latents are most active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

SHOWN = 8


@dataclass(frozen=True)
class TopTokens:
    """The `SHOWN` different tokens with the highest activation of each latent, highest first."""

    ids: Tensor
    """[width, SHOWN] int32 token ids; −1 where there are fewer."""
    values: Tensor
    """[width, SHOWN] float32 highest activation on that token; 0 beside −1."""

    def joined(self, other: TopTokens) -> TopTokens:
        """Of both together (two domains)."""
        ids, values = torch.cat([self.ids, other.ids], 1), torch.cat([self.values, other.values], 1)
        latents = torch.arange(len(ids))[:, None].expand_as(ids)
        on = (ids >= 0).flatten()
        entries = (x.flatten()[on].numpy() for x in (latents, ids, values))
        return _best(*entries, width=len(ids))


def top_tokens(codes: csr_array, ids: NDArray[np.int64]) -> TopTokens:
    """From codes [tokens, width] and the token ids [tokens]."""
    rows = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))
    return _best(codes.indices, ids[rows], codes.data, width=codes.shape[1])


def _best(latents: NDArray[Any], ids: NDArray[Any], values: NDArray[Any], *, width: int) -> TopTokens:
    order = np.lexsort((-values, ids, latents))
    latents, ids, values = latents[order], ids[order], values[order]
    new = np.ones(len(order), dtype=bool)  # the first, so strongest, of every pair of latent and token
    new[1:] = (latents[1:] != latents[:-1]) | (ids[1:] != ids[:-1])
    latents, ids, values = latents[new], ids[new], values[new]
    order = np.lexsort((ids, -values, latents))
    latents, ids, values = latents[order], ids[order], values[order]
    counts = np.bincount(latents, minlength=width)
    rank = np.arange(len(latents)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < SHOWN
    found = TopTokens(torch.full((width, SHOWN), -1, dtype=torch.int32), torch.zeros(width, SHOWN))
    place = torch.from_numpy(latents[kept]).long(), torch.from_numpy(rank[kept])
    found.ids[place], found.values[place] = torch.from_numpy(ids[kept]).int(), torch.from_numpy(values[kept]).float()
    return found
