"""Boosting: a residual SAE reads x and predicts a frozen base's error (SAE Boost, arXiv 2507.12990)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from latentbench.errors import InvalidInput
from latentbench.sae.base import Loss, SparseAutoencoder, TrainableSAE, digest
from latentbench.sae.codes import Codes
from latentbench.sae.dictionary import SparseDictionarySAE, squared_error
from latentbench.sae.encoders import LinearEncoder
from latentbench.sae.linear import ConcatenatedSAE, Group, LinearWeights, concatenated, frozen
from latentbench.sae.linear import linear_weights as weights_of
from latentbench.sae.options.boost import BoostedOptions, EnsembleOptions
from latentbench.sae.selection import selection
from latentbench.sae.sparse import sparse_decode


class Residual(SparseDictionarySAE):
    """ê = Σ z_i W_dec[i] with z from x itself: no decoder bias, so that without active latents nothing changes.

    Decoder rows start at zero: before its first step a residual SAE leaves the base as it is.
    """

    centred = False
    encoder: LinearEncoder

    def __init__(self, options: BoostedOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        chosen = selection(options.selection, options.k, options.threshold_momentum)
        super().__init__(options, encoder, torch.zeros(options.width, d_in), chosen, squared_error)
        self.b_dec.requires_grad_(False)

    @torch.no_grad()
    def begin(self, mean: Tensor, scale: float) -> None:
        """Starts the encoder's bias so that the mean hidden state gives pre-activation zero."""
        self.encoder.bias.copy_(-(self.encoder.weight @ (mean * scale)))


class Ensemble(SparseAutoencoder):
    """x̂ = x̂_base + Σ ê over the residual SAEs of several domains. Latents: the base's, then each residual's."""

    def __init__(self, options: EnsembleOptions, d_in: int, generator: torch.Generator, *boosts: Boosted) -> None:
        super().__init__()
        if not all(isinstance(boost, Boosted) for boost in boosts):
            raise InvalidInput("an ensemble is made of boosted SAEs; another SAE stands among its boosts")
        if not boosts or any(digest(boost.base) != digest(boosts[0].base) for boost in boosts):
            raise InvalidInput("an ensemble needs one or more boosted SAEs of the same base")
        self._boosts = boosts
        self.d_in, self.width = d_in, boosts[0].base.width + sum(boost.residual.width for boost in boosts)

    @property
    def bases(self) -> tuple[SparseAutoencoder, ...]:
        return self._boosts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Ensemble:
        for boost in self._boosts:
            boost._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = encode_together(x, self._boosts[0].base, [boost.residual for boost in self._boosts])
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        return decode_together(codes, self._boosts[0].base, [boost.residual for boost in self._boosts])

    def linear_weights(self) -> LinearWeights:
        """Base and residuals as the groups of one dictionary. Raises InvalidInput where the base is not linear."""
        groups, b_dec = weights_of(self._boosts[0].base)
        return LinearWeights((*groups, *(g for boost in self._boosts for g in boost.residual_groups())), b_dec)

    def as_single(self) -> ConcatenatedSAE:
        """One dictionary with concatenated weights and the same output. Raises InvalidInput as `linear_weights`."""
        return ConcatenatedSAE(self.linear_weights())


class Boosted(TrainableSAE):
    """x̂ = x̂_base + ê: latents of the frozen base first, then those of the residual SAE, which alone is trained."""

    def __init__(self, options: BoostedOptions, d_in: int, generator: torch.Generator, base: SparseAutoencoder) -> None:
        super().__init__()
        if base.d_in != d_in:
            raise InvalidInput(f"the base SAE reads {base.d_in} dimensions, the hidden states have {d_in}")
        self._base = (frozen(base),)  # a tuple: its weights are not part of this SAE's own
        self.residual = Residual(options, d_in, generator)
        self.d_in, self.width = d_in, base.width + options.width
        self.scale = 1.0

    @property
    def base(self) -> SparseAutoencoder:
        """The frozen SAE below."""
        return self._base[0]

    @property
    def bases(self) -> tuple[SparseAutoencoder, ...]:
        return self._base

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Boosted:
        self.base._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def begin(self, mean: Tensor, scale: float) -> None:
        self.scale = scale
        self.residual.begin(mean, scale)

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> Loss:
        """The residual SAE's loss with input x and target x − x̂_base."""
        with torch.no_grad():
            raw = x / self.scale
            codes = self.base.encode(raw)
            error = (raw - self.base.decode(codes)) * self.scale
        loss = self.residual.loss_on(x, error, dead[self.base.width :])
        return loss._replace(firing=torch.cat([codes.firing_counts(self.base.width), loss.firing]))

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = encode_together(x, self.base, [self.residual])
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        return decode_together(codes, self.base, [self.residual])

    def decoder_rows(self) -> Tensor | None:
        rows = self.base.decoder_rows()
        return None if rows is None else torch.cat([rows, self.residual.W_dec])

    def fold_input_scale(self, scale: float) -> None:
        self.scale = 1.0
        self.residual.fold_input_scale(scale)

    def settings(self) -> dict[str, float | int | str]:
        return self.residual.settings()

    def residual_groups(self) -> tuple[Group, ...]:
        """The residual SAE's latents as groups of a dictionary."""
        return self.residual.linear_weights().groups

    def linear_weights(self) -> LinearWeights:
        """Base and residual as the groups of one dictionary. Raises InvalidInput where the base is not linear."""
        groups, b_dec = weights_of(self.base)
        return LinearWeights((*groups, *self.residual_groups()), b_dec)

    def as_single(self) -> ConcatenatedSAE:
        """One dictionary with concatenated weights and the same output. Raises InvalidInput as `linear_weights`."""
        return ConcatenatedSAE(self.linear_weights())


def encode_together(x: Tensor, base: SparseAutoencoder, residuals: Sequence[Residual]) -> Codes:
    """Codes of base and residuals in one numbering of latents: the base's first."""
    ends = tuple(accumulate([base.width, *(residual.width for residual in residuals)]))
    return concatenated([base.encode(x), *(residual.encode(x) for residual in residuals)], ends)


def decode_together(codes: Codes, base: SparseAutoencoder, residuals: Sequence[Residual]) -> Tensor:
    """The base's reconstruction plus what the residuals add; without active residual latents exactly the former."""
    out, start = base.decode(_part(codes, 0, base.width)), base.width
    for residual in residuals:
        out = out + sparse_decode(_part(codes, start, residual.width), residual.W_dec)
        start += residual.width
    return out


def _part(codes: Codes, start: int, width: int) -> Codes:
    inside = (codes.indices >= start) & (codes.indices < start + width)
    return Codes(torch.where(inside, codes.values, 0), torch.where(inside, codes.indices - start, 0))
