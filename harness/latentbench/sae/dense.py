"""The base of variants trained with a sparsity penalty: all latents have gradients, so training is dense."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from latentbench.sae.base import Loss
from latentbench.sae.codes import Codes
from latentbench.sae.dictionary import DictionarySAE
from latentbench.sae.encoders import unit_rows
from latentbench.sae.linear import Group, LinearWeights, folded_bias
from latentbench.sae.memory import rows_per_chunk
from latentbench.sae.options.dense import Penalised
from latentbench.sae.rules import ThresholdRule, padded


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
        group = Group(weight, folded_bias(weight, bias, self.b_dec), self.W_dec, ThresholdRule(threshold.detach()))
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

    def fitted(self, x: Tensor, latents: Tensor, penalty: Tensor, extra: Tensor | None = None) -> Loss:
        """The loss of dense latents with their penalty, and what further term there is."""
        reconstruction = (x - latents @ self.W_dec - self.b_dec).pow(2).sum() / len(x)
        auxiliary = penalty if extra is None else penalty + extra
        firing = (latents.detach() > 0).sum(0)
        return Loss(reconstruction + auxiliary, reconstruction.detach(), auxiliary.detach(), firing)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)


def _active(latents: Tensor) -> Codes:
    rows, columns = latents.nonzero(as_tuple=True)
    return padded(rows, columns, latents[rows, columns], len(latents))
