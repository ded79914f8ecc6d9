"""Per-document sufficient statistics, from which every metric of an SAE on a domain follows.

All are float64 sums over a document. Over its ordinary tokens (not BOS, EOS, PAD, SEP, CLS, none that the spec names, and
none whose hidden state at the site is massive: harness/latentbench/core/token_rule.py), with x the hidden state, x̂ the
reconstruction, e = x − x̂, x̄ and ē their means over all ordinary tokens of the domain, d the dimensions:

    tokens             number of ordinary tokens           squared_error      Σ ‖e‖²
    elements           tokens · d                          residual_variance  Σ ‖e − ē‖²
    squared_norm       Σ ‖x‖²                              token_ratio        Σ (1 − ‖e‖² / ‖x − x̄‖²)
    total_variance     Σ ‖x − x̄‖²                          cosine             Σ cos(x, x̂), 0 for a zero vector
                                                           norm_ratio         Σ ‖x̂‖ / ‖x‖
                                                           l0                 Σ number of active latents

Over its predictions of real tokens (positions 1 … length−1; the one made from BOS counts), in nats:

    predictions        length − 1                          ce_sae             Σ −log p(next) with x̂ in x's place
    ce_clean           Σ −log p(next)                      kl_sae             Σ KL(clean ‖ with x̂ in x's place)
    ce_zero, ce_mean   … with 0, x̄ in x's place            kl_zero, kl_mean   Σ KL(clean ‖ with 0, x̄ in x's place)

In every substitution all other tokens keep their own hidden states. The left column is shared by all SAEs at a site, and so
are `massive` and `named`, the numbers of tokens that the rule leaves out.

A metric from outside may bring further sums over ordinary tokens: see `Statistic` in
harness/latentbench/metrics/base.py for how they are declared, and `TokenBatch` for what they are computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.massive import UNLIMITED, NormLimit
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.metrics.base import at_budget
from latentbench.reconstruction.documents import squared_norms
from latentbench.sae.autoencoder import Codes
from latentbench.statistics.arrays import Array, Counts

SPLICED_BASELINE = ("ce_clean", "ce_zero", "ce_mean", "kl_zero", "kl_mean")

_PREFIX = "statistics."

_TINY = 1e-300
"""Makes the cosine with a zero vector 0. Squares of float32 are 0 or at least 1e-45, so no other cosine is touched."""


@dataclass(frozen=True)
class TokenBatch:
    """What statistics of tokens are computed from: the N ordinary tokens of a batch of whole documents and one SAE.

    The tensors are shared with everything else that is measured in the pass and must not be changed. Norms are float64
    and computed once, however many statistics take them.
    """

    x: Tensor
    """[N, d] float32: hidden states."""
    mean: Tensor
    """[d] float64: mean hidden state over the domain's ordinary tokens."""
    reconstruction: Tensor
    """[N, d] float32: what the SAE makes of them."""
    codes: Codes
    """The latents that are active on each token."""
    ids: Tensor
    """[N] int64: token ids."""
    positions: Tensor
    """[N] int64: the token's place in its document, BOS at 0."""

    @cached_property
    def error(self) -> Tensor:
        """[N, d] float32: x − x̂."""
        return self.x - self.reconstruction

    @cached_property
    def squared_error(self) -> Tensor:
        """[N] ‖x − x̂‖²."""
        return squared_norms(self.error)

    @cached_property
    def squared_norm(self) -> Tensor:
        """[N] ‖x‖²."""
        return squared_norms(self.x)

    @cached_property
    def squared_reconstruction(self) -> Tensor:
        """[N] ‖x̂‖²."""
        return squared_norms(self.reconstruction)


TokenStatistic = Callable[[TokenBatch], Tensor]
"""One number [N] of each token, which the pass adds up per document in float64. It is called without gradients."""


def _token_ratio(batch: TokenBatch) -> Tensor:
    return 1 - batch.squared_error / squared_norms(batch.x - batch.mean)


def _cosine(batch: TokenBatch) -> Tensor:
    product = (batch.x * batch.reconstruction).sum(-1, dtype=torch.float64)
    return product / (batch.squared_norm * batch.squared_reconstruction).sqrt().clamp_min(_TINY)


TOKEN_STATISTICS: Mapping[str, TokenStatistic] = {
    "squared_error": lambda batch: batch.squared_error,
    "token_ratio": _token_ratio,
    "cosine": _cosine,
    "norm_ratio": lambda batch: (batch.squared_reconstruction / batch.squared_norm).sqrt(),
    "l0": lambda batch: batch.codes.l0,
}
"""The statistics that are measured of every SAE."""


@dataclass(frozen=True)
class Baseline:
    """What one domain's documents give at one site without any SAE."""

    site: Site
    mean: Array
    """[d] float64: mean hidden state over the domain's ordinary tokens."""
    statistics: dict[str, Array]
    """The shared statistics, [documents] each."""
    limit: NormLimit = UNLIMITED
    """How long a hidden state may be to be ordinary."""

    @property
    def spliced(self) -> bool:
        """Whether cross-entropies and divergences are among the statistics."""
        return all(name in self.statistics for name in SPLICED_BASELINE)

    def unspliced(self) -> Baseline:
        """The same without cross-entropies and divergences, as a pass that needs none would have given it."""
        kept = {name: values for name, values in self.statistics.items() if name not in SPLICED_BASELINE}
        return replace(self, statistics=kept)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors for safetensors and the metadata beside them."""
        limit = torch.tensor([self.limit.median, self.limit.length], dtype=torch.float64)
        tensors = _packed(self.statistics) | {"mean": torch.from_numpy(self.mean), "limit": limit}
        return tensors, {"site": self.site.plain()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> Baseline:
        """The inverse of `to_tensors`."""
        limit = NormLimit(*tensors["limit"].tolist())
        return Baseline(Site(**meta["site"]), tensors["mean"].numpy(), _unpacked(tensors), limit)


@dataclass(frozen=True)
class Measurement:
    """What one domain's documents give with one SAE at one budget."""

    name: str
    """The request's name."""
    budget: int | None
    """Active latents per token the SAE was limited to; None: as trained."""
    statistics: dict[str, Array] = field(default_factory=dict)
    """The SAE's statistics, [documents] each, named with the budget: `squared_error@8`."""
    firing: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[width] on how many of the domain's ordinary tokens each latent is active."""

    @property
    def spliced(self) -> bool:
        """Whether cross-entropy and divergence are among the statistics."""
        return at_budget("ce_sae", self.budget) in self.statistics

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors for safetensors and the metadata beside them (the name is the caller's and not stored)."""
        return _packed(self.statistics) | {"firing": torch.from_numpy(self.firing)}, {"budget": self.budget}

    @staticmethod
    def from_tensors(name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> Measurement:
        """The inverse of `to_tensors`."""
        return Measurement(name, meta["budget"], _unpacked(tensors), tensors["firing"].numpy())


def _packed(statistics: Mapping[str, Array]) -> dict[str, Tensor]:
    return {_PREFIX + name: torch.from_numpy(values) for name, values in statistics.items()}


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name.removeprefix(_PREFIX): t.numpy() for name, t in tensors.items() if name.startswith(_PREFIX)}
