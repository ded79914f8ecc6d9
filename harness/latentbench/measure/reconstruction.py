"""The statistics of one SAE's reconstructions, gathered batch by batch (definitions: harness/latentbench/measure/statistics.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.measure.batches import DocumentBatch, DocumentSums, per_document, squared_norms, vector_sums
from latentbench.measure.statistics import Measurement
from latentbench.metrics.base import Array, at_budget
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.codes import Codes

_TINY = 1e-300
"""Makes the cosine with a zero vector 0."""


class Reconstructions:
    """Everything measured of one SAE at one budget on one domain."""

    def __init__(self, sae: SparseAutoencoder, budget: int | None, documents: int) -> None:
        self._sae, self._budget = sae, budget
        self._sums = DocumentSums(documents)
        self._firing = torch.zeros(sae.width, dtype=torch.int64)

    def add(self, batch: DocumentBatch, x: Tensor, mean: Tensor) -> Tensor:
        """Takes the hidden states [N, d] float32 of the batch's ordinary tokens and returns their reconstructions.

        `mean` [d] is the domain's. Raises whatever the SAE raises.
        """
        codes = self._sae.encode(x, self._budget)
        reconstruction = self._sae.decode(codes).to(x.dtype)
        if reconstruction.shape != x.shape:
            raise ValueError(f"reconstructions of shape {tuple(reconstruction.shape)} for {tuple(x.shape)} given")
        self._firing += codes.firing_counts(self._sae.width).cpu()
        sums = {
            name: per_document(values, batch.ordinary)
            for name, values in _per_token(x, reconstruction, mean, codes).items()
        }
        self._sums.put(batch, **sums, error=vector_sums(x - reconstruction, batch))
        return reconstruction

    def add_losses(self, batch: DocumentBatch, cross_entropy: Tensor, divergence: Tensor) -> None:
        """Takes the losses [B] with the reconstructions spliced in."""
        self._sums.put(batch, ce_sae=cross_entropy, kl_sae=divergence)

    def finished(self, name: str, tokens: Tensor) -> Measurement:
        """The measurement, given the number of ordinary tokens [documents]. To be called once."""
        residual = _residual_variance(self._sums["squared_error"], self._sums.pop("error"), tokens)
        sums = self._sums.arrays() | {"residual_variance": residual}
        statistics = {at_budget(key, self._budget): values for key, values in sums.items()}
        return Measurement(name, self._budget, statistics, self._firing.numpy())


def _per_token(x: Tensor, reconstruction: Tensor, mean: Tensor, codes: Codes) -> dict[str, Tensor]:
    """Statistics [N] of each token."""
    squared_error, squared_x, squared_hat = map(squared_norms, (x - reconstruction, x, reconstruction))
    product = (x * reconstruction).sum(-1, dtype=torch.float64)
    return {
        "squared_error": squared_error,
        "token_ratio": 1 - squared_error / squared_norms(x - mean),
        "cosine": product / (squared_x * squared_hat).sqrt().clamp_min(_TINY),
        "norm_ratio": (squared_hat / squared_x).sqrt(),
        "l0": codes.l0,
    }


def _residual_variance(squared_error: Tensor, errors: Tensor, tokens: Tensor) -> Array:
    """Σ‖e − ē‖² of each document, from Σ‖e‖² [documents], Σe [documents, d] and its number of tokens [documents].

    Expanded about 0 in float64, because ē is known only after the last batch.
    """
    mean_error = errors.sum(0) / tokens.sum().clamp_min(1)
    residual = squared_error - 2 * errors @ mean_error + tokens * mean_error.square().sum()
    array: Array = residual.clamp_min(0).numpy()
    return array
