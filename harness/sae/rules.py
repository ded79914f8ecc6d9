"""Which latents are active: the k strongest, those above a threshold, or the strongest of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.sae.codes import Codes

SPREAD = 4
"""How many times the mean number of active latents a token may have before the batch is looked at again."""


@dataclass(frozen=True)
class TopRule:
    """The k strongest latents of the group, ReLU."""

    k: int


@dataclass(frozen=True)
class ThresholdRule:
    """Latents whose pre-activation exceeds max(threshold, 0)."""

    threshold: Tensor
    """[width]"""


def padded(rows: Tensor, columns: Tensor, values: Tensor, tokens: int) -> Codes:
    """Codes of entries (row, column, value) given in row order; rows with fewer entries are padded with zeros."""
    counts = torch.bincount(rows, minlength=tokens)
    active = max(1, int(counts.max())) if tokens else 1
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    out = Codes(values.new_zeros(tokens, active), columns.new_zeros(tokens, active))
    out.values[rows, slots] = values
    out.indices[rows, slots] = columns
    return out


def entries_above(pre: Tensor, threshold: Tensor) -> Codes:
    """All positive entries of `pre` [N, width] above `threshold` (scalar or [width]), in latent order."""
    rows, columns = ((pre > threshold) & (pre > 0)).nonzero(as_tuple=True)
    return padded(rows, columns, pre[rows, columns], len(pre))


def top_of_batch(top: Callable[[int], Codes], tokens: int, width: int, total: int) -> Codes:
    """The `total` largest positive latents of `tokens` tokens together, descending per token, padded with zeros.

    `top(m)` gives the m largest per token, descending. If no token's m-th reaches the smallest one chosen, nothing
    outside these candidates can belong to the batch's strongest, so the choice is exact; otherwise m is raised.
    Equal values at the boundary: the earlier token, then the stronger rank wins.
    """
    m = min(width, SPREAD * -(-total // tokens))
    while True:
        codes = top(m)
        bound = _smallest(codes.values, total)
        if m == width or not bool((codes.values[:, -1] >= bound).any()):
            return _kept(codes, bound, total)
        m = min(width, 4 * m)


def _smallest(values: Tensor, total: int) -> Tensor:
    """The `total`-th largest of `values`, but at least the smallest positive number."""
    flat = values.detach().flatten()
    tiny = flat.new_tensor(torch.finfo(flat.dtype).tiny)
    return tiny if total >= len(flat) else flat.kthvalue(len(flat) - total + 1).values.maximum(tiny)


def _kept(codes: Codes, bound: Tensor, total: int) -> Codes:
    above = codes.values > bound
    equal = codes.values == bound
    ties = (equal.flatten().cumsum(0) <= total - above.sum()).view_as(equal)
    keep = above | (equal & ties)
    active = max(1, int(keep.sum(1).max()))
    return Codes(codes.values[:, :active] * keep[:, :active], codes.indices[:, :active])
