"""Next-token losses: cross-entropy and KL divergence of substituted logits against those of the clean model.

Log-probabilities are float32 whatever the model's data type, sums are float64. They are taken a few predictions at a time, in
buffers that stay in the processor's cache: with a vocabulary of 262,144 every intermediate result of a batch is a gibibyte,
and writing it to fresh memory costs several times what computing it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.reconstruction.documents import per_document

_ELEMENTS_AT_ONCE = 2**21
"""Log-probabilities in work at once (8 MiB a buffer); the result does not depend on it."""


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
        mask = real[:, 1:]  # a document's last position predicts nothing that is known
        # Kept for the whole batch: every substitution at every site is held against it.
        clean = torch.empty(int(mask.sum()), logits.shape[-1], device=logits.device)
        for part, chunk in _chunks(logits, mask):
            clean[part] = torch.log_softmax(chunk, -1)
        return Predictions(mask, ids[:, 1:][mask], clean)

    def clean_loss(self) -> Tensor:
        """[B] float64: cross-entropy of the clean model, summed over each document."""
        return per_document(_cross_entropy(self.clean, self.targets), self.mask)

    def losses(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL(clean ‖ substituted), [B] float64 each, of substituted logits [B, T, vocabulary]."""
        losses = torch.empty(len(self.targets), dtype=torch.float64, device=logits.device)
        divergences = torch.empty_like(losses)
        for part, chunk in _chunks(logits, self.mask):
            substituted = torch.log_softmax(chunk, -1)
            losses[part] = _cross_entropy(substituted, self.targets[part])
            divergences[part] = _divergence(self.clean[part], substituted, spare=chunk)
        return per_document(losses, self.mask), per_document(divergences, self.mask)


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets[:, None])[:, 0].double()


def _divergence(clean: Tensor, substituted: Tensor, spare: Tensor) -> Tensor:
    """KL(p ‖ q) [P] float64 as Σ (p log(p/q) − p + q), whose terms are all ≥ 0.

    The added Σ (q − p) is zero, and makes rounding of log p and log q count by q − p instead of by p: small
    divergences, which Σ p log(p/q) leaves with three digits at 1e-3 nats, keep theirs. `substituted` and `spare`, both of
    `clean`'s shape [P, vocabulary], are written over.
    """
    log_ratio = torch.sub(substituted, clean, out=spare)
    # Terms of log_ratio ≥ 1 are q − p − p·log_ratio instead: exp(log_ratio) may overflow there while p underflows. They are few.
    far = (~(log_ratio < 1)).view(-1).nonzero()[:, 0]
    q, p = substituted.view(-1)[far].exp(), clean.view(-1)[far].exp()
    far_terms = q - p - p * log_ratio.view(-1)[far]
    terms = torch.expm1(log_ratio, out=substituted).sub_(log_ratio).mul_(clean.exp())
    terms.view(-1)[far] = far_terms
    return terms.sum(-1, dtype=torch.float64)


def _chunks(logits: Tensor, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits [B, T, vocabulary] of the positions of `mask` [B, T−1], in row-major order, a few at a time in float32."""
    rows, columns = mask.nonzero(as_tuple=True)
    pieces = -(-len(rows) * logits.shape[-1] // _ELEMENTS_AT_ONCE)
    done = 0
    # Pieces of even size: a lone row at the end would be summed in another order than the others.
    for part in torch.arange(len(rows)).tensor_split(max(1, pieces)):
        piece = slice(done, done + len(part))
        done += len(part)
        yield piece, logits[rows[piece], columns[piece]].float()
