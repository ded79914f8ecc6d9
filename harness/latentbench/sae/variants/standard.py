"""Standard SAE: z = ReLU(W_enc (x − b_dec) + b_enc) with an L1 penalty (Bricken et al. 2023)."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from latentbench.sae.base import Loss
from latentbench.sae.dense import PenalisedSAE
from latentbench.sae.options.dense import StandardOptions


class Standard(PenalisedSAE):
    """L = ‖x − x̂‖² + λ √d_in Σ z_i ‖W_dec[i]‖: for ‖x‖² = d_in the same as λ Σ z_i ‖W_dec[i]‖ at unit norm."""

    def __init__(self, options: StandardOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        self.coefficient = options.l1_coefficient * sqrt(d_in)

    def latents(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> Loss:
        latents = self.latents(x)
        l1 = (latents @ self.W_dec.norm(dim=1)).mean()
        return self.fitted(x, latents, self.coefficient * self.warmed(step, steps) * l1)
