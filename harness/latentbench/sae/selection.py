"""Which latents are active: the strongest of every token, or of a whole batch (BatchTopK)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latentbench.sae.codes import Codes
from latentbench.sae.rules import ThresholdRule, TopRule
from latentbench.sae.team import OfTeam

if TYPE_CHECKING:
    from latentbench.sae.encoders import Encoder


class Selection(nn.Module, OfTeam, ABC):
    """Which latents are active, in training and afterwards. `shift` [d_in] or None is subtracted from `x` [N, d_in]."""

    @abstractmethod
    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None) -> Codes:
        """Differentiable codes of a training batch."""

    @abstractmethod
    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        """Codes of tokens that do not influence each other; at most `budget` latents each."""

    @abstractmethod
    def rule(self, width: int) -> TopRule | ThresholdRule:
        """The rule of `infer` for a linear encoder of `width` latents."""

    def fold_input_scale(self, scale: float) -> None:
        """Activations are from now on divided by `scale`."""

    def settings(self) -> dict[str, float | int | str]:
        """What people may want to read."""
        return {}


class TokenSelection(Selection):
    """The k strongest latents of every token."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None) -> Codes:
        return encoder.top(x, self.k, shift)

    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        return encoder.top(x, self.k if budget is None else min(budget, self.k), shift)

    def rule(self, width: int) -> TopRule:
        return TopRule(self.k)


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
        tokens = int(self.team.sum(torch.tensor(len(x))))
        codes = encoder.top_of_batch(x, tokens * self.k, shift, self.team)
        self._follow(codes.values.detach())
        return codes

    @property
    def followed(self) -> bool:
        """Whether the threshold has seen a batch."""
        return bool((self.threshold >= 0).all())

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        positive = values[values > 0]
        low = self.team.lowest(positive.min() if len(positive) else values.new_tensor(inf))
        if low < inf:
            share = self.momentum if self.followed else 1.0
            self.threshold.lerp_(low.to(self.threshold).expand_as(self.threshold), share)

    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        codes = encoder.above(x, self.threshold.clamp_min(0), shift)
        return codes if budget is None else codes.truncated(budget)

    def rule(self, width: int) -> ThresholdRule:
        return ThresholdRule(self.threshold.clamp_min(0).expand(width))

    def settings(self) -> dict[str, float | int | str]:
        return {"threshold": float(self.threshold.mean())}

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        if self.followed:
            self.threshold.div_(scale)


def selection(name: str, k: int, momentum: float) -> Selection:
    """`topk` per token or `batch_topk` over the batch."""
    return BatchSelection(k, momentum) if name == "batch_topk" else TokenSelection(k)
