"""Cross-entropy and KL divergence per document from logits, a few predictions at a time.

Log-probabilities are float32 whatever the model's data type; sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.measure.batches import per_document

_ELEMENTS_AT_ONCE = 2**25
"""Logits converted to float32 at once (128 MiB); the result does not depend on it."""


@dataclass(frozen=True)
class Predictions:
    """Which positions of a batch of documents predict a real token, and what the clean model says there."""

    mask: Tensor
    """[B, T−1] bool: position t predicts token t+1, which is real."""
    targets: Tensor
    """[P] int64: the tokens predicted, document by document."""
    clean: Tensor
    """[P, vocabulary] float32: log-probabilities of the clean model."""

    @staticmethod
    def of(logits: Tensor, ids: Tensor, real: Tensor) -> Predictions:
        """From clean logits [B, T, vocabulary], token ids [B, T] and the mask of real tokens [B, T]."""
        mask = real[:, 1:]
        clean = torch.cat([torch.log_softmax(chunk.float(), -1) for chunk in _chunks(logits[:, :-1][mask])])
        return Predictions(mask, ids[:, 1:][mask], clean)

    def clean_loss(self) -> Tensor:
        """[B] float64: cross-entropy of the clean model, summed over each document."""
        return per_document(_cross_entropy(self.clean, self.targets), self.mask)

    def losses(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL(clean ‖ substituted), [B] float64 each, of substituted logits [B, T, vocabulary]."""
        losses, divergences, done = [], [], 0
        for chunk in _chunks(logits[:, :-1][self.mask]):
            substituted = torch.log_softmax(chunk.float(), -1)
            part = slice(done, done + len(chunk))
            losses.append(_cross_entropy(substituted, self.targets[part]))
            divergences.append(_divergence(self.clean[part], substituted))
            done += len(chunk)
        return per_document(torch.cat(losses), self.mask), per_document(torch.cat(divergences), self.mask)


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets[:, None])[:, 0].double()


def _divergence(clean: Tensor, substituted: Tensor) -> Tensor:
    """KL(p ‖ q) [P] float64 as Σ (p log(p/q) − p + q), whose terms are all ≥ 0.

    The added Σ (q − p) is zero, and makes rounding of log p and log q count by q − p instead of by p: small
    divergences, which Σ p log(p/q) leaves with three digits at 1e-3 nats, keep theirs.
    """
    p, log_ratio = clean.exp(), substituted - clean
    near = p * (log_ratio.expm1() - log_ratio)
    far = substituted.exp() - p - p * log_ratio  # where exp(log_ratio) may overflow while p underflows
    return torch.where(log_ratio < 1, near, far).sum(-1, dtype=torch.float64)


def _chunks(logits: Tensor) -> tuple[Tensor, ...]:
    return torch.split(logits, max(1, _ELEMENTS_AT_ONCE // logits.shape[-1]))
