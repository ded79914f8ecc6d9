"""Documents in batches of similar length, and sums that end up in document order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.activations.tokens import EvalTokens, real_mask
from latentbench.metrics.base import Array


@dataclass(frozen=True)
class DocumentBatch:
    """Documents that are run together, padded to the longest of them."""

    documents: Tensor
    """[B] int64, on the CPU: their numbers."""
    ids: Tensor
    """[B, T] int64."""
    real: Tensor
    """[B, T] bool: not padding."""
    ordinary: Tensor
    """[B, T] bool: neither padding nor special."""


def document_batches(
    tokens: EvalTokens, special: Tensor, forward_tokens: int, device: torch.device
) -> Iterator[DocumentBatch]:
    """All documents, longest first, in batches of at most `forward_tokens` padded tokens (but at least a document).

    `special` [documents, context] marks special tokens. The longest come first so that memory runs out at once or
    never.
    """
    real = real_mask(tokens.lengths, tokens.ids.shape[1])
    order = torch.argsort(tokens.lengths, descending=True, stable=True)
    done = 0
    while done < len(order):
        longest = int(tokens.lengths[order[done]])
        chosen = order[done : done + max(1, forward_tokens // longest)]
        done += len(chosen)
        part = chosen, slice(0, longest)
        yield DocumentBatch(
            chosen, tokens.ids[part].to(device).long(), real[part].to(device), (real & ~special)[part].to(device)
        )


class DocumentSums:
    """Named per-document sums, filled batch by batch, whatever the order of the batches."""

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self._sums: dict[str, Tensor] = {}

    def put(self, batch: DocumentBatch, **sums: Tensor) -> None:
        """Sets the sums [B] (or vectors [B, d]) of the batch's documents."""
        for name, values in sums.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self._documents, *values.shape[1:], dtype=torch.float64)
            self._sums[name][batch.documents] = values.to("cpu", torch.float64)

    def pop(self, name: str) -> Tensor:
        """Takes one sum out."""
        return self._sums.pop(name)

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name]

    def arrays(self) -> dict[str, Array]:
        """All sums, [documents] float64."""
        return {name: values.numpy() for name, values in self._sums.items()}


def per_document(values: Tensor, mask: Tensor) -> Tensor:
    """[B] float64: sums over each row of `mask` [B, T] of `values` [N], one per True in row-major order."""
    spread = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    spread[mask] = values.double()
    return spread.sum(1)


def vector_sums(vectors: Tensor, batch: DocumentBatch) -> Tensor:
    """[B, d] float64: sums over each document of vectors [N, d], one per ordinary token of the batch."""
    counts = batch.ordinary.sum(1).tolist()
    return torch.stack([part.sum(0, dtype=torch.float64) for part in torch.split(vectors, counts)])


def squared_norms(vectors: Tensor) -> Tensor:
    """[N] float64: squared Euclidean norms of vectors [N, d]."""
    return vectors.square().sum(-1, dtype=torch.float64)
