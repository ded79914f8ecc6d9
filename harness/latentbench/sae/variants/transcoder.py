"""Transcoders: latents of what an MLP is given, which make what it adds (Dunefsky et al. 2024, arXiv 2406.11944).

ŷ = b_dec + Σ z_i W_dec[i] + W_skip x with z = TopK(ReLU(W_enc x + b_enc)); L = ‖y − ŷ‖² + AuxK. Without `skip` there is no
W_skip. W_dec and W_skip start at zero and b_dec at the mean of y, so that a transcoder starts as a constant (Paulo et al. 2025,
arXiv 2501.18823).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentbench.core.errors import InvalidInput
from latentbench.distributed.process_group import global_mean
from latentbench.sae.autoencoder import Codes, TrainingLoss
from latentbench.sae.dictionary import SparseDictionarySAE, squared_error
from latentbench.sae.encoders import LinearEncoder, TokenSelection
from latentbench.sae.linear import LinearWeights
from latentbench.sae.options.transcoder import TranscoderOptions


class Transcoder(SparseDictionarySAE):
    """Reads pairs [N, 2 d_in]: what an MLP is given, then what it adds; encodes the former and predicts the latter.

    Parameter beside those of its base: `W_skip` [d_in, d_in] where there is a skip connection. Buffer `gains` [2]: what the two
    sides are multiplied by in training, each to a mean norm of √d_in on the first batch, since an MLP may add far less than
    it is given.
    """

    paired = True
    centred = False
    gains: Tensor

    def __init__(self, options: TranscoderOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        super().__init__(options, encoder, torch.zeros(options.width, d_in), TokenSelection(options.k), squared_error)
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_in)) if options.skip else None
        self.register_buffer("gains", torch.ones(2))

    @torch.no_grad()
    def begin(self, mean: Tensor, scale: float) -> None:
        """Starts `b_dec` at the mean [2 d_in] of what is added."""
        self.b_dec.copy_(mean[self.d_in :] * scale)

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        """Codes of pairs [N, 2 d_in], or of what the MLP is given [N, d_in] alone."""
        return super().encode(x[:, : self.d_in] * self.gains[0], budget)

    def reconstruct(self, x: Tensor, codes: Codes) -> Tensor:
        return self.decode(codes) + self._skipped(x[:, : self.d_in] * self.gains[0])

    def compared(self, x: Tensor) -> Tensor:
        return x[:, self.d_in :] * self.gains[1]

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        if step == 0:
            self._balance(x)
        given = x[:, : self.d_in] * self.gains[0]
        # The latents learn what the skip connection leaves, and it what they leave: gradients reach it through the target.
        return self.loss_on(given, self.compared(x) - self._skipped(given), dead, step, steps)

    def linear_weights(self) -> LinearWeights:
        """Refused. Raises InvalidInput: its decoder writes something else than its encoder reads."""
        raise InvalidInput("a transcoder is no SAE: it predicts another hidden state than it reads")

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        read, written = (self.gains * scale).tolist()
        super().fold_input_scale(read)
        # The base has divided the bias by the scale of what is read; the rest of the way is that to what is written.
        self.b_dec.mul_(read / written)
        self.W_dec.mul_(read / written)
        if self.W_skip is not None:
            self.W_skip.mul_(read / written)
        self.gains.fill_(1)

    def _skipped(self, given: Tensor) -> Tensor:
        return given.new_zeros(()) if self.W_skip is None else F.linear(given, self.W_skip)

    @torch.no_grad()
    def _balance(self, x: Tensor) -> None:
        for side, half in enumerate((x[:, : self.d_in], x[:, self.d_in :])):
            norm = global_mean(half.norm(dim=1), self.group)
            if norm > 0:
                self.gains[side] = self.d_in**0.5 / norm
        self.b_dec.mul_(self.gains[1])
