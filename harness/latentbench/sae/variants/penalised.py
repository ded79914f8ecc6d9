"""Variants trained with a sparsity penalty: standard and p-annealed L1, Gated and JumpReLU. All latents have gradients: training is dense.

The papers train on inputs of unit norm, the trainer here on inputs of mean norm √d_in, so that the squared error is d_in times
as large. Coefficients are multiplied by √d_in for L1 norms, which grow with the inputs, and by d_in for L0, which does not.

Standard: z = ReLU(W_enc (x − b_dec) + b_enc) with an L1 penalty (Bricken et al. 2023). p-annealed: the same with an Lᵖ
penalty whose p falls (Karvonen et al. 2024, 2408.00113). Gated: a gate chooses, a magnitude
path with shared rows measures (Rajamanoharan et al. 2024, 2404.16014). JumpReLU: learned thresholds, L0 penalty,
straight-through gradients (Rajamanoharan et al. 2024, 2407.14435).
"""

from __future__ import annotations

from abc import abstractmethod
from math import ceil, log, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from latentbench.distributed.process_group import global_mean
from latentbench.sae.autoencoder import Codes, TrainingLoss
from latentbench.sae.dictionary import DictionarySAE
from latentbench.sae.encoders import unit_rows
from latentbench.sae.linear import LatentGroup, LinearWeights, ThresholdRule, folded_bias, padded
from latentbench.sae.memory import row_chunks
from latentbench.sae.options.penalised import (
    GatedOptions,
    JumpReLUOptions,
    PAnnealOptions,
    Penalised,
    StandardOptions,
    Thresholded,
)


class DenseSAE(DictionarySAE):
    """Latents z ≥ 0, all of which have gradients, with a penalty that rises in the first steps."""

    warmup: float
    """Share of the steps in which it rises."""

    @abstractmethod
    def latents(self, x: Tensor) -> Tensor:
        """Dense activations [N, width] of hidden states [N, d_in]."""

    @torch.no_grad()
    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = Codes.joined([_active(self.latents(x[part])) for part in row_chunks(len(x), self.width)])
        return codes if budget is None else codes.truncated(budget)

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
        self.b_dec.div_(scale)


class PenalisedSAE(DenseSAE):
    """Latents of rows that read x − b_dec. Parameters `W_enc` [width, d_in], `b_enc` [width].

    Decoder rows start at unit norm, encoder rows parallel to them, shorter by 2 d_in / width: with half of all latents
    active at the start, the reconstruction then starts at about x.
    """

    def __init__(self, options: Penalised, d_in: int, generator: torch.Generator) -> None:
        rows = unit_rows(torch.randn(options.width, d_in, generator=generator))
        super().__init__(rows)
        # At most 1: a narrow dictionary starts as a tied one.
        self.W_enc = nn.Parameter(rows * min(1.0, 2 * d_in / options.width))
        self.b_enc = nn.Parameter(torch.zeros(options.width))
        self.warmup = options.sparsity_warmup

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

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        super().fold_input_scale(scale)
        self.b_enc.div_(scale)


def _active(latents: Tensor) -> Codes:
    rows, columns = latents.nonzero(as_tuple=True)
    return padded(rows, columns, latents[rows, columns], len(latents))


class Standard(PenalisedSAE):
    """L = ‖x − x̂‖² + λ √d_in Σ z_i ‖W_dec[i]‖: for ‖x‖² = d_in the same as λ Σ z_i ‖W_dec[i]‖ at unit norm."""

    def __init__(self, options: StandardOptions | PAnnealOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.coefficient = options.l1_coefficient * sqrt(d_in)

    def latents(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        latents = self.latents(x)
        l1 = (latents @ self.W_dec.norm(dim=1)).mean()
        return self.fitted(x, latents, self.coefficient * self.warmed(step, steps) * l1)


class PAnneal(Standard):
    """L = ‖x − x̂‖² + λ √d_in c Σ z_iᵖ with decoder rows of unit norm; p falls in `updates` equal parts, from 1.

    With every fall c is multiplied by the mean of Σ zᵖ over that of Σ zᵖ' with the new p', both over the latest `queue` batches
    (Karvonen et al. 2024, arXiv 2408.00113). Buffers beside the parameters of PenalisedSAE: `factor` [], which is c, and
    `recent` [queue, 2], the two penalties of the latest batches, batch t in row t mod queue.
    """

    factor: Tensor
    recent: Tensor

    def __init__(self, options: PAnnealOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.start, self.end, self.updates = options.anneal_start, options.p_end, options.updates
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("recent", torch.zeros(options.queue, 2))

    def falls(self, step: int, steps: int) -> int:
        """How often p has fallen at `step` of `steps`: first after `anneal_start`, then in equal distances up to the end."""
        begin = self.start * steps
        part = max(1.0, (steps - begin) / self.updates)
        return min(self.updates, ceil(max(0.0, step - begin) / part))

    def power(self, falls: int) -> float:
        """p after so many falls."""
        return 1 - (1 - self.end) * min(falls, self.updates) / self.updates

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        falls, latents = self.falls(step, steps), self.latents(x)
        if step and falls > self.falls(step - 1, steps):
            self._keep_strength()
        now, later = (global_mean(powers(latents, self.power(n)), self.group) for n in (falls, falls + 1))
        self.recent[step % len(self.recent)] = torch.stack([now.detach(), later.detach()])
        # A copy: the factor changes in place while this step's graph may still need its value.
        strength = self.coefficient * self.warmed(step, steps) * self.factor.clone()
        return self.fitted(x, latents, strength * now)

    @torch.no_grad()
    def _keep_strength(self) -> None:
        now, later = self.recent.sum(0)
        # Where nothing is active there is no penalty to keep.
        if later > 0:
            self.factor.mul_(now / later)
        # What was written down compares this p with the last one, not with the next.
        self.recent.zero_()

    @torch.no_grad()
    def after_step(self) -> None:
        self.W_dec.copy_(unit_rows(self.W_dec))


def powers(latents: Tensor, p: float) -> Tensor:
    """Σ zᵖ [N] of non-negative latents [N, width]; zeros count for nothing and get no gradient."""
    # The slope of zᵖ has no bound near zero. Where latents are zero it would be infinite, and times zero NaN.
    active = latents > 0
    return torch.where(active, torch.where(active, latents, 1).pow(p), 0).sum(1)


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
        # The gate learns from reconstructing x by itself; the decoder is detached so that it serves the real latents
        # only.
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
        # The threshold's gradient is that of a step smoothed over ε: only pre-activations within ε/2 of it give any.
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


class ThresholdedSAE(DenseSAE):
    """L = ‖x − x̂‖² + λ d_in L0, or λ d_in T (L0 / T − 1)² for a target T; decoder rows keep unit norm.

    Latents are activations above a learned threshold. Parameter `log_threshold` [width], which `add_thresholds` makes.
    """

    @abstractmethod
    def activations(self, x: Tensor) -> Tensor:
        """What thresholds are compared with: non-negative numbers [N, width] of hidden states [N, d_in]."""

    def add_thresholds(self, options: Thresholded) -> None:
        """To be called when the other weights are there."""
        self.coefficient = options.l0_coefficient * self.d_in
        self.target, self.bandwidth = options.target_l0, options.bandwidth
        # Learned as a logarithm: thresholds stay positive whatever the step.
        self.log_threshold = nn.Parameter(torch.full((options.width,), log(options.initial_threshold)))

    @property
    def threshold(self) -> Tensor:
        """Thresholds [width]."""
        return self.log_threshold.exp()

    def latents(self, x: Tensor) -> Tensor:
        return jump(self.activations(x), self.threshold, self.bandwidth)

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        pre, threshold = self.activations(x), self.threshold
        # The quadratic penalty of a mean is no mean of penalties: L0 is needed over all members' tokens.
        l0 = global_mean(count(pre, threshold, self.bandwidth), self.group)
        penalty = l0 if self.target is None else self.target * (l0 / self.target - 1).pow(2)
        latents = jump(pre, threshold, self.bandwidth)
        return self.fitted(x, latents, self.coefficient * self.warmed(step, steps) * penalty)

    @torch.no_grad()
    def after_step(self) -> None:
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        super().fold_input_scale(scale)
        # Dividing a threshold by the scale is subtracting its logarithm.
        self.log_threshold.sub_(log(scale))


class JumpReLU(ThresholdedSAE, PenalisedSAE):
    """Pre-activations of rows above learned thresholds."""

    def __init__(self, options: JumpReLUOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.add_thresholds(options)

    def activations(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def equivalent(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_enc, self.b_enc, self.threshold
