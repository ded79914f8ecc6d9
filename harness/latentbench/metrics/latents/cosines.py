"""Cosines between latents' directions, in chunks: no matrix of width × width exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from latentbench.errors import InvalidInput
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.linear import linear_weights

_ENTRIES = 1 << 24
"""Cosines that exist at once."""


class Neighbours(NamedTuple):
    """For each of n directions the nearest of others, nearest first."""

    cosines: Tensor
    """[n, k]"""
    indices: Tensor
    """[n, k] int64"""


def nearest(rows: Tensor, k: int, of: Tensor | None = None) -> Neighbours:
    """The k other rows of `rows` [width, d] with the largest cosine to each of them (or only to the numbers `of`).

    A row never counts as its own neighbour; rows of zeros have cosine 0 to everything. k is at most width − 1.
    """
    unit = F.normalize(rows, dim=1)
    wanted = torch.arange(len(rows), device=rows.device) if of is None else of
    k = min(k, len(rows) - 1)
    found = [_strongest(unit, part, k) for part in torch.split(wanted, _rows_at_once(len(rows)))]
    if not found:
        return Neighbours(rows.new_zeros(0, k), wanted.new_zeros(0, k))
    return Neighbours(torch.cat([n.cosines for n in found]), torch.cat([n.indices for n in found]))


def best_matches(a: Tensor, b: Tensor) -> Tensor:
    """[n] the largest cosine of each row of `a` [n, d] to any row of `b` [m, d]."""
    other = F.normalize(b, dim=1)
    return torch.cat([(part @ other.t()).amax(1) for part in _chunks(F.normalize(a, dim=1), len(b))])


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """[n] cosine of row i of `a` [n, d] and row i of `b` [n, d]."""
    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)


def decoder_of(sae: SparseAutoencoder) -> Tensor:
    """Its dictionary [width, d_in] without gradients. Raises InvalidInput where there is none."""
    rows = sae.decoder_rows()
    if rows is None:
        raise InvalidInput(f"{type(sae).__name__} has no dictionary")
    return rows.detach()


def encoder_of(sae: SparseAutoencoder) -> Tensor:
    """Its linear encoder's rows [width, d_in]. Raises InvalidInput where there is none (KronSAE)."""
    return torch.cat([group.W_enc for group in linear_weights(sae).groups]).detach()


def _strongest(unit: Tensor, part: Tensor, k: int) -> Neighbours:
    cosines = unit[part] @ unit.t()
    cosines[torch.arange(len(part), device=part.device), part] = -torch.inf
    return Neighbours(*cosines.topk(k, dim=1))


def _rows_at_once(width: int) -> int:
    return max(1, _ENTRIES // max(1, width))


def _chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
    return iter(torch.split(rows, _rows_at_once(width)))
