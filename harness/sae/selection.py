"""Which latents are active: the strongest of every token, or of a whole batch (BatchTopK)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.sae.codes import Codes

if TYPE_CHECKING:
    from harness.sae.encoders import Encoder

SPREAD = 4
"""How many times the mean number of active latents a token may have before the batch is looked at again."""


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


class Selection(nn.Module, ABC):
    """Which latents are active, in training and afterwards. `shift` [d_in] or None is subtracted from `x` [N, d_in]."""

    @abstractmethod
    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None) -> Codes:
        """Differentiable codes of a training batch."""

    @abstractmethod
    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        """Codes of tokens that do not influence each other; at most `budget` latents each."""

    def fold_input_scale(self, scale: float) -> None:
        """Activations are from now on divided by `scale`."""


class TokenSelection(Selection):
    """The k strongest latents of every token."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None) -> Codes:
        return encoder.top(x, self.k, shift)

    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        return encoder.top(x, self.k if budget is None else min(budget, self.k), shift)


class BatchSelection(Selection):
    """The N·k strongest latents of N tokens together (Bussmann et al. 2024, arXiv 2412.06410).

    Afterwards a global threshold takes over: the running mean of the smallest activation that was selected.
    """

    threshold: Tensor

    def __init__(self, k: int, momentum: float) -> None:
        super().__init__()
        self.k = k
        self.momentum = momentum
        self.register_buffer("threshold", torch.tensor(-1.0))

    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None) -> Codes:
        codes = encoder.top_of_batch(x, len(x) * self.k, shift)
        self._follow(codes.values.detach())
        return codes

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        positive = values[values > 0]
        if len(positive):
            share = self.momentum if self.threshold >= 0 else 1.0
            self.threshold.lerp_(positive.min().to(self.threshold), share)

    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        codes = encoder.above(x, self.threshold.clamp_min(0), shift)
        return codes if budget is None else codes.truncated(budget)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        if self.threshold >= 0:
            self.threshold.div_(scale)


def selection(name: str, k: int, momentum: float) -> Selection:
    """`topk` per token or `batch_topk` over the batch."""
    return BatchSelection(k, momentum) if name == "batch_topk" else TokenSelection(k)
