"""Controls: identity, mean predictor, PCA, TopK with a frozen random decoder, TopK as initialised."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.errors import InvalidInput
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.codes import Codes
from latentbench.sae.encoders import unit_rows
from latentbench.sae.moments import FittedSAE, Moments
from latentbench.sae.options.controls import (
    IdentityOptions,
    MeanOptions,
    PCAOptions,
    RandomDecoderOptions,
    UntrainedOptions,
)
from latentbench.sae.options.topk import TopKOptions
from latentbench.sae.variants.topk import TopK


class Identity(SparseAutoencoder):
    """Every dimension is its own latent: x̂ = x, bit for bit."""

    def __init__(self, options: IdentityOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__()
        self.d_in = self.width = d_in

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = Codes(x, torch.arange(self.width, device=x.device).expand(len(x), -1))
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        return codes.dense(self.width)


class Mean(FittedSAE):
    """x̂ = mean; its one latent is never active. Buffer `b_dec` [d_in]."""

    b_dec: Tensor

    def __init__(self, options: MeanOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__()
        self.d_in, self.width = d_in, 1
        self.register_buffer("b_dec", torch.zeros(d_in))

    def fit(self, moments: Moments) -> None:
        self.b_dec.copy_(moments.mean)

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return Codes(x.new_zeros(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64, device=x.device))

    def decode(self, codes: Codes) -> Tensor:
        return self.b_dec.expand(len(codes.values), -1)


class PCA(FittedSAE):
    """z = W (x − mean), x̂ = mean + Wᵀ z; rows of W are principal components by falling variance.

    Buffers `W_dec` [k, d_in], `b_dec` [d_in]. A budget keeps the first components.
    """

    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, options: PCAOptions, d_in: int, generator: torch.Generator) -> None:
        if options.k > d_in:
            raise InvalidInput(f"{options.k} principal components do not exist in {d_in} dimensions")
        super().__init__()
        self.d_in, self.width = d_in, options.k
        self.register_buffer("W_dec", torch.zeros(options.k, d_in))
        self.register_buffer("b_dec", torch.zeros(d_in))

    def fit(self, moments: Moments) -> None:
        vectors = torch.linalg.eigh(moments.covariance).eigenvectors.flip(1)[:, : self.width].t()
        strongest = vectors.abs().argmax(1, keepdim=True)
        self.W_dec.copy_(vectors * vectors.gather(1, strongest).sign())
        self.b_dec.copy_(moments.mean)

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        rows = self.W_dec[: self.width if budget is None else budget]
        return Codes((x - self.b_dec) @ rows.t(), torch.arange(len(rows), device=x.device).expand(len(x), -1))

    def decode(self, codes: Codes) -> Tensor:
        return codes.dense(self.width) @ self.W_dec + self.b_dec

    def decoder_rows(self) -> Tensor:
        return self.W_dec


class RandomDecoder(TopK):
    """TopK whose decoder rows are random, of unit norm, independent of the encoder, and frozen."""

    def __init__(self, options: RandomDecoderOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(options, d_in, generator)
        rows = unit_rows(torch.randn(self.width, d_in, generator=generator))
        self.W_dec.requires_grad_(False).copy_(rows)


class Untrained(TopK, FittedSAE):
    """TopK with its initial weights and the decoder bias at the mean."""

    def __init__(self, options: UntrainedOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(TopKOptions(width=options.width, k=options.k), d_in, generator)

    @torch.no_grad()
    def fit(self, moments: Moments) -> None:
        self.b_dec.copy_(moments.mean)
