"""The codes of an evaluation domain, batch by batch: one forward pass, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens
from latentbench.measure.batches import DocumentBatch
from latentbench.measure.domain import Domain, Progress
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.codes import Codes

if TYPE_CHECKING:
    from latentbench_adapters.protocols import LanguageModel

_TOKENS_PER_FORWARD = 4096


@dataclass(frozen=True)
class Encoded:
    """Whole documents and the codes of their N ordinary tokens, in row-major order."""

    batch: DocumentBatch
    states: Tensor
    """[N, d_in] float32 hidden states."""
    codes: Codes

    @property
    def rows(self) -> Tensor:
        """[N] int64: the token's document, counted within the batch."""
        return self.batch.ordinary.nonzero()[:, 0]

    @property
    def positions(self) -> Tensor:
        """[N] int64: the token's place in its document, BOS at 0."""
        return self.batch.ordinary.nonzero()[:, 1]

    @property
    def ids(self) -> Tensor:
        """[N] int64 token ids."""
        return self.batch.ids[self.batch.ordinary]


@dataclass(frozen=True)
class Entries:
    """The E non-zero activations of a batch."""

    latents: Tensor
    """[E] int64."""
    values: Tensor
    """[E]."""
    tokens: Tensor
    """[E] int64: number of the token in 0..N-1."""

    @staticmethod
    def of(codes: Codes) -> Entries:
        """Every activation that is not zero, token by token."""
        active = codes.values != 0
        tokens = active.nonzero()[:, 0]
        return Entries(codes.indices[active], codes.values[active], tokens)


@torch.no_grad()
def encoded(
    model: LanguageModel,
    sae: SparseAutoencoder,
    site: Site,
    tokens: EvalTokens,
    *,
    forward_tokens: int = _TOKENS_PER_FORWARD,
    progress: Progress | None = None,
) -> Iterator[Encoded]:
    """All documents of a domain in batches of at most `forward_tokens` padded tokens, longest documents first."""
    domain = Domain(model, tokens, forward_tokens, progress)
    domain.passes = 1
    for batch in domain.batches():
        states = hidden_states(domain.model, [site], batch.ids, batch.real.long())[site][batch.ordinary].float()
        yield Encoded(batch, states, sae.encode(states))
