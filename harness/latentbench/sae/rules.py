"""Which latents are active: the k strongest, those above a threshold, or the strongest of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.sae.codes import Codes
from latentbench.sae.team import ALONE, Team

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


def top_of_batch(top: Callable[[int], Codes], tokens: int, width: int, total: int, team: Team = ALONE) -> Codes:
    """The `total` largest positive latents of all tokens together, descending per token, padded with zeros.

    `top(m)` gives the m largest per token, descending. If no token's m-th reaches the smallest one chosen, nothing
    outside these candidates can belong to the batch's strongest, so the choice is exact; otherwise m is raised.
    Equal values at the boundary: the earlier token, then the stronger rank wins. In a team, of whose batch `tokens` are
    this member's, the batch is that of all members, and of equal values the lower member's win.
    """
    m = min(width, SPREAD * -(-total // (tokens * team.size)))
    while True:
        codes = top(m)
        bound = _smallest(team.joined(codes.values.detach().flatten()), total)
        short = m < width and bool((codes.values[:, -1] >= bound).any())
        if not team.sum(torch.tensor(int(short))):
            return _kept(codes, bound, total, team)
        m = min(width, 4 * m)


def _smallest(flat: Tensor, total: int) -> Tensor:
    """The `total`-th largest of some values [n], but at least the smallest positive number."""
    tiny = flat.new_tensor(torch.finfo(flat.dtype).tiny)
    return tiny if total >= len(flat) else flat.kthvalue(len(flat) - total + 1).values.maximum(tiny)


def _kept(codes: Codes, bound: Tensor, total: int, team: Team) -> Codes:
    above, equal = codes.values > bound, codes.values == bound
    counts = torch.zeros(team.size, 2, dtype=torch.int64, device=bound.device)
    counts[team.rank] = torch.stack([above.sum(), equal.sum()])
    counts = team.sum(counts)
    room = total - counts[:, 0].sum() - counts[: team.rank, 1].sum()
    ties = (equal.flatten().cumsum(0) <= room).view_as(equal)
    keep = above | (equal & ties)
    active = max(1, int(keep.sum(1).max()))
    return Codes(codes.values[:, :active] * keep[:, :active], codes.indices[:, :active])
