"""Variants trained with a sparsity penalty: standard L1, Gated and JumpReLU. All latents have gradients: training is dense.

Standard: z = ReLU(W_enc (x − b_dec) + b_enc) with an L1 penalty (Bricken et al. 2023). Gated: a gate chooses, a magnitude
path with shared rows measures (Rajamanoharan et al. 2024, 2404.16014). JumpReLU: learned thresholds, L0 penalty,
straight-through gradients (Rajamanoharan et al. 2024, 2407.14435).
"""

from __future__ import annotations

from abc import abstractmethod
from math import log, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from latentbench.distributed.process_group import global_mean
from latentbench.sae.autoencoder import Codes, TrainingLoss
from latentbench.sae.dictionary import DictionarySAE
from latentbench.sae.encoders import ThresholdRule, padded, unit_rows
from latentbench.sae.linear import LatentGroup, LinearWeights, folded_bias
from latentbench.sae.memory import rows_per_chunk
from latentbench.sae.options.penalised import GatedOptions, JumpReLUOptions, Penalised, StandardOptions


class PenalisedSAE(DictionarySAE):
    """Latents z(x − b_dec) ≥ 0 with a penalty. Parameters `W_enc` [width, d_in], `b_enc` [width].

    Decoder rows start at unit norm, encoder rows parallel to them, shorter by 2 d_in / width: with half of all latents
    active at the start, the reconstruction then starts at about x.
    """

    def __init__(self, options: Penalised, d_in: int, generator: torch.Generator) -> None:
        rows = unit_rows(torch.randn(options.width, d_in, generator=generator))
        super().__init__(rows)
        self.W_enc = nn.Parameter(rows * min(1.0, 2 * d_in / options.width))
        self.b_enc = nn.Parameter(torch.zeros(options.width))
        self.warmup = options.sparsity_warmup

    @abstractmethod
    def latents(self, x: Tensor) -> Tensor:
        """Dense activations [N, width] of hidden states [N, d_in]."""

    @torch.no_grad()
    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        step = rows_per_chunk(self.width)
        chunks = [self.latents(x[start : start + step]) for start in range(0, max(1, len(x)), step)]
        codes = Codes.joined([_active(latents) for latents in chunks])
        return codes if budget is None else codes.truncated(budget)

    def linear_weights(self) -> LinearWeights:
        """The weights as one group with thresholds that reads x."""
        weight, bias, threshold = self.equivalent()
        group = LatentGroup(
            weight, folded_bias(weight, bias, self.b_dec), self.W_dec, ThresholdRule(threshold.detach())
        )
        return LinearWeights((group,), self.b_dec)

    def equivalent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder rows, biases and thresholds with which z = pre · 1[pre > max(threshold, 0)], pre from x − b_dec."""
        return self.W_enc, self.b_enc, torch.zeros_like(self.b_enc)

    def pre(self, x: Tensor) -> Tensor:
        """W_enc (x − b_dec) + b_enc [N, width]."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc.t())

    def warmed(self, step: int, steps: int) -> float:
        """Share of the penalty that applies at `step` of `steps`."""
        return min(1.0, (step + 1) / max(1.0, self.warmup * steps))

    def fitted(self, x: Tensor, latents: Tensor, penalty: Tensor, extra: Tensor | None = None) -> TrainingLoss:
        """The loss of dense latents with their penalty, and what further term there is."""
        reconstruction = (x - latents @ self.W_dec - self.b_dec).pow(2).sum() / len(x)
        auxiliary = penalty if extra is None else penalty + extra
        firing = (latents.detach() > 0).sum(0)
        return TrainingLoss(reconstruction + auxiliary, reconstruction.detach(), auxiliary.detach(), firing)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)


def _active(latents: Tensor) -> Codes:
    rows, columns = latents.nonzero(as_tuple=True)
    return padded(rows, columns, latents[rows, columns], len(latents))


class Standard(PenalisedSAE):
    """L = ‖x − x̂‖² + λ √d_in Σ z_i ‖W_dec[i]‖: for ‖x‖² = d_in the same as λ Σ z_i ‖W_dec[i]‖ at unit norm."""

    def __init__(self, options: StandardOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.coefficient = options.l1_coefficient * sqrt(d_in)

    def latents(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        latents = self.latents(x)
        l1 = (latents @ self.W_dec.norm(dim=1)).mean()
        return self.fitted(x, latents, self.coefficient * self.warmed(step, steps) * l1)


class Gated(PenalisedSAE):
    """z = 1[π > 0] ReLU(e^r ⊙ W_enc (x − b_dec) + b_mag) with gate π = W_enc (x − b_dec) + b_enc.

    L = ‖x − x̂(z)‖² + λ √d_in ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖², the last with the decoder held fixed.
    Decoder rows keep unit norm. Parameters beside those of PenalisedSAE: `r_mag`, `b_mag` [width].
    """

    def __init__(self, options: GatedOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.coefficient = options.l1_coefficient * sqrt(d_in)
        self.r_mag = nn.Parameter(torch.zeros(options.width))
        self.b_mag = nn.Parameter(torch.zeros(options.width))

    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(π, z), each [N, width]; the step function passes no gradient."""
        rows = (x - self.b_dec) @ self.W_enc.t()
        gate = rows + self.b_enc
        return gate, (gate > 0) * (rows * self.r_mag.exp() + self.b_mag).relu()

    def latents(self, x: Tensor) -> Tensor:
        return self.gate(x)[1]

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        gate, latents = self.gate(x)
        opened = gate.relu()
        penalty = self.coefficient * self.warmed(step, steps) * opened.sum() / len(x)
        from_gate = (x - opened @ self.W_dec.detach() - self.b_dec.detach()).pow(2).sum() / len(x)
        return self.fitted(x, latents, penalty, from_gate)

    def equivalent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gate is open where the magnitude's pre-activation exceeds b_mag − e^r b_enc."""
        gain = self.r_mag.exp()
        return self.W_enc * gain[:, None], self.b_mag, self.b_mag - gain * self.b_enc

    @torch.no_grad()
    def after_step(self) -> None:
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        super().fold_input_scale(scale)
        self.b_mag.div_(scale)


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

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        pre, threshold = self.pre(x).relu(), self.threshold
        l0 = global_mean(count(pre, threshold, self.bandwidth), self.group)
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
