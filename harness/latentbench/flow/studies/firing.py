"""The codes of some sites over a domain, with the document and token of every one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens
from latentbench.flow.activity import Activity, Texts, batches, codes_at, held
from latentbench.lab import Lab
from latentbench.metrics.base import Array

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Firing:
    """Ordinary tokens of a domain, document by document, and which latents are active there."""

    codes: dict[Site, csr_array]
    """[tokens, width] float32 by site."""
    documents: Integers
    """[tokens] number of the document."""
    ids: Integers
    """[tokens] token id."""
    count: int
    """Number of documents."""

    def per_document(self, values: Array) -> Array:
        """[documents] float64: sums of one value per token [tokens]."""
        return np.bincount(self.documents, weights=values, minlength=self.count).astype(np.float64)


@torch.no_grad()
def firing(lab: Lab, tokens: EvalTokens, sites: Collection[Site]) -> Firing:
    """One pass over a domain. Memory: 8 bytes per active latent."""
    saes = held(lab, sites)
    found = {site: Activity(sae.width) for site, sae in saes.items()}
    documents, ids = [], []
    for batch in batches(lab, Texts.of(tokens)):
        for site, codes in codes_at(lab, saes, batch).items():
            found[site].add(codes)
        documents.append(batch.ordinary.nonzero()[:, 0].cpu().numpy() + batch.rows.start)
        ids.append(batch.ids[batch.ordinary].cpu().numpy())
    matrices = {site: activity.matrix() for site, activity in found.items()}
    return Firing(matrices, np.concatenate(documents), np.concatenate(ids), len(tokens.ids))


def fired(codes: csr_array) -> csr_array:
    """[tokens, width] int8: 1 where a latent is active."""
    ones = np.ones(len(codes.indices), dtype=np.int8)
    return csr_array((ones, codes.indices, codes.indptr), shape=codes.shape)


def active_at(codes: csr_array, indices: Integers) -> csr_array:
    """[tokens, width] int8: 1 where any of the matches `indices` [width, k] of each latent is active; −1 is none."""
    on = fired(codes).tocsc()
    chosen = [on[:, np.where(column < 0, 0, column)].multiply(column >= 0) for column in indices.T]
    total = csr_array(sum(chosen[1:], start=chosen[0]))
    total.eliminate_zeros()
    return fired(total)


def firing_rates(codes: csr_array) -> Array:
    """[width] share of tokens on which each latent is active."""
    counts = np.bincount(codes.indices, minlength=codes.shape[1])
    return counts.astype(np.float64) / max(1, codes.shape[0])
