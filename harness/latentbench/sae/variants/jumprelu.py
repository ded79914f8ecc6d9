"""JumpReLU: learned thresholds, L0 penalty, straight-through gradients (Rajamanoharan et al. 2024, 2407.14435)."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from latentbench.sae.base import Loss
from latentbench.sae.dense import PenalisedSAE
from latentbench.sae.encoders import unit_rows
from latentbench.sae.options.dense import JumpReLUOptions
from latentbench.sae.team import mean_of_all


class _Jump(Function):
    """π · 1[π > θ]; ∂/∂θ = −θ/ε · K((π − θ)/ε) with a rectangle K."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(g.dtype)
        return g * (pre > threshold), -(threshold / ctx.bandwidth) * (near * g).sum(0), None


class _Step(Function):
    """1[π > θ]; ∂/∂θ = −1/ε · K((π − θ)/ε) with a rectangle K, nothing for π."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(g.dtype)
        return None, -(near * g).sum(0) / ctx.bandwidth, None


def jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """JumpReLU of pre-activations [N, width] with thresholds [width]."""
    out: Tensor = _Jump.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return out


def count(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """L0 per token [N] with a straight-through gradient to the thresholds [width]."""
    steps: Tensor = _Step.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return steps.sum(1)


class JumpReLU(PenalisedSAE):
    """L = ‖x − x̂‖² + λ d_in L0, or λ d_in T (L0 / T − 1)² for a target T; decoder rows keep unit norm.

    Parameter beside those of PenalisedSAE: `log_threshold` [width].
    """

    def __init__(self, options: JumpReLUOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.coefficient = options.l0_coefficient * d_in
        self.target, self.bandwidth = options.target_l0, options.bandwidth
        self.log_threshold = nn.Parameter(torch.full((options.width,), log(options.initial_threshold)))

    @property
    def threshold(self) -> Tensor:
        """Thresholds [width]."""
        return self.log_threshold.exp()

    def latents(self, x: Tensor) -> Tensor:
        return jump(self.pre(x).relu(), self.threshold, self.bandwidth)

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> Loss:
        pre, threshold = self.pre(x).relu(), self.threshold
        l0 = mean_of_all(count(pre, threshold, self.bandwidth), self.team)
        penalty = l0 if self.target is None else self.target * (l0 / self.target - 1).pow(2)
        latents = jump(pre, threshold, self.bandwidth)
        return self.fitted(x, latents, self.coefficient * self.warmed(step, steps) * penalty)

    def equivalent(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_enc, self.b_enc, self.threshold

    @torch.no_grad()
    def after_step(self) -> None:
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        super().fold_input_scale(scale)
        self.log_threshold.sub_(log(scale))
