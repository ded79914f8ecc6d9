"""Encoders: they choose latents without a dense graph and return differentiable, non-negative codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from latentbench.sae.codes import Codes
from latentbench.sae.memory import rows_per_chunk
from latentbench.sae.rules import entries_above, top_of_batch
from latentbench.sae.sparse import attach, preactivations, top_linear
from latentbench.sae.team import ALONE, Team


class Encoder(nn.Module, ABC):
    """What a dictionary asks of its encoder. `shift` [d_in] is subtracted from `x` [N, d_in] first, where given."""

    @abstractmethod
    def top(self, x: Tensor, k: int, shift: Tensor | None) -> Codes:
        """The k strongest latents of each token, descending."""

    @abstractmethod
    def top_of_batch(self, x: Tensor, total: int, shift: Tensor | None, team: Team = ALONE) -> Codes:
        """Those of the `total` strongest latents of all the team's tokens together that belong to `x`."""

    @abstractmethod
    def above(self, x: Tensor, threshold: Tensor, shift: Tensor | None) -> Codes:
        """All latents above a threshold (scalar), without gradients."""

    @abstractmethod
    def some(self, x: Tensor, latents: Tensor, shift: Tensor | None) -> Tensor:
        """Dense activations [N, n] of the given latents [n]."""

    @abstractmethod
    def top_among(self, x: Tensor, latents: Tensor, k: int, shift: Tensor | None) -> Codes:
        """The k strongest of the given latents [n] of each token, descending."""

    @abstractmethod
    def initial_decoder(self) -> Tensor:
        """Decoder rows [width, d_in] of unit norm to start from."""

    @abstractmethod
    def fold_input_scale(self, scale: float) -> None:
        """From reading `scale · x` to reading x, activations divided by `scale`."""


class LinearEncoder(Encoder):
    """ReLU(W (x − shift) + b); W [width, d_in] starts with random unit rows, b [width] with zeros."""

    def __init__(self, d_in: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(unit_rows(torch.randn(width, d_in, generator=generator)))
        self.bias = nn.Parameter(torch.zeros(width))

    def top(self, x: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = centred(x, shift)
        return self._active(top_linear(x, self.weight, self.bias, k), x, shift)

    def top_of_batch(self, x: Tensor, total: int, shift: Tensor | None = None, team: Team = ALONE) -> Codes:
        x = centred(x, shift)
        width = self.weight.shape[0]
        top = partial(top_linear, x, self.weight, self.bias)
        return self._active(top_of_batch(top, len(x), width, total, team), x, shift)

    def above(self, x: Tensor, threshold: Tensor, shift: Tensor | None = None) -> Codes:
        x = centred(x, shift)
        step = rows_per_chunk(self.weight.shape[0])
        chunks = [x[start : start + step] for start in range(0, max(1, len(x)), step)]
        return Codes.joined([entries_above(preactivations(c, self.weight, self.bias), threshold) for c in chunks])

    def some(self, x: Tensor, latents: Tensor, shift: Tensor | None = None) -> Tensor:
        centred = x if shift is None else x - shift
        return (centred @ self.weight[latents].t() + self.bias[latents]).relu()

    def top_among(self, x: Tensor, latents: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = centred(x, shift)
        found = top_linear(x, self.weight[latents], self.bias[latents], k)
        return self._active(Codes(found.values, latents[found.indices]), x, shift)

    def initial_decoder(self) -> Tensor:
        return self.weight.detach().clone()

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        self.bias.div_(scale)

    def _active(self, codes: Codes, x: Tensor, shift: Tensor | None) -> Codes:
        codes = attach(codes, x, self.weight, self.bias, shift)
        return Codes(codes.values.relu(), codes.indices)


def unit_rows(weight: Tensor) -> Tensor:
    """Rows scaled to unit L2 norm."""
    rows: Tensor = weight / weight.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return rows


def centred(x: Tensor, shift: Tensor | None) -> Tensor:
    """x − shift without a gradient to the shift (`attach` gives it one)."""
    return x if shift is None else x - shift.detach()
