"""Controls: identity, mean predictor, PCA, TopK with a frozen random decoder, TopK as initialised.

Some are computed, not trained: moments of the hidden states are gathered from the same stream.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from latentbench.core.errors import CellFailed, InvalidInput, RefusedFile
from latentbench.core.sites import Site
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.sae.encoders import unit_rows
from latentbench.sae.options.controls import (
    IdentityOptions,
    MeanOptions,
    PCAOptions,
    RandomDecoderOptions,
    UntrainedOptions,
)
from latentbench.sae.options.topk import TopKOptions
from latentbench.sae.trainer import Throughput
from latentbench.sae.variants.topk import TopK


class Moments(NamedTuple):
    """Mean [d_in] and covariance [d_in, d_in] of hidden states, in float64."""

    mean: Tensor
    covariance: Tensor


class FittedSAE(SparseAutoencoder):
    """A control that is made from moments."""

    @abstractmethod
    def fit(self, moments: Moments) -> None:
        """Sets the weights."""


class FittedTrainer:
    """Gathers moments in float64 and fits a control at the end. The sums of a group are those of its members together."""

    def __init__(
        self, sae: FittedSAE, site: Site, device: torch.device | None = None, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.sae, self.site, self.next_block = sae.to(device), site, 0
        self.throughput, self.group = Throughput(), group
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
        self.products = torch.zeros(sae.d_in, sae.d_in, dtype=torch.float64, device=device)

    def step(self, x: Tensor) -> None:
        """Adds hidden states `x` [n, d_in]. Raises CellFailed when they are not finite."""
        x = x.double()
        if self.group.all_sum((~torch.isfinite(x)).sum()):
            raise CellFailed("the hidden states hold NaN or infinity; try dtype: float32 for the model")
        self.count += len(x)
        self.total += x.sum(0)
        self.products.addmm_(x.t(), x)

    def state(self) -> dict[str, Tensor]:
        """The sums so far and the position, as copies. The first member of a group then has the sums, as after loading."""
        sums = {name: self.group.all_sum(getattr(self, name).clone()) for name in ("count", "total", "products")}
        state = sums | {"position": torch.tensor([self.next_block])}
        self.load_state(state)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continues exactly where `state` was taken. Raises RefusedFile when it does not fit."""
        try:
            for name in ("count", "total", "products"):
                getattr(self, name).copy_(state[name] if self.group.rank == 0 else torch.zeros_like(state[name]))
            (self.next_block,) = state["position"].tolist()
        except (KeyError, RuntimeError, ValueError) as error:
            raise RefusedFile(f"the checkpoint does not fit this control: {error}") from error

    def finish(self) -> SparseAutoencoder:
        """The control. Raises CellFailed when it has seen no hidden states."""
        count, total, products = map(self.group.all_sum, (self.count, self.total, self.products))
        if count == 0:
            raise CellFailed("no hidden states to compute this control from")
        mean = total / count
        self.sae.fit(Moments(mean, products / count - mean.outer(mean)))
        return self.sae.eval().requires_grad_(False)


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
