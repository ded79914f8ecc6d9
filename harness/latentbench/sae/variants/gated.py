"""Gated SAE: a gate chooses, a magnitude path with shared rows measures (Rajamanoharan et al. 2024, 2404.16014)."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from latentbench.sae.base import Loss
from latentbench.sae.dense import PenalisedSAE
from latentbench.sae.encoders import unit_rows
from latentbench.sae.options.dense import GatedOptions


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

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> Loss:
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
