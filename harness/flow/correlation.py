"""Latents that fire together: Pearson correlations of two sites' sparse codes, without a width × width matrix.

r_ij = (n Σ z_i z_j − Σ z_i Σ z_j) / √((n Σ z_i² − (Σ z_i)²)(n Σ z_j² − (Σ z_j)²)). Sums are float64. Products are made for
ROWS latents of one site at a time, so that beside the codes (8 bytes per active latent) ROWS · width numbers are held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from harness.flow.activity import Activity
from harness.flow.matching import Best, Nearest

ROWS = 256
"""Latents whose correlations with the whole other dictionary exist at once."""


@dataclass(frozen=True)
class _Side:
    codes: csc_array
    sums: NDArray[np.float64]
    spread: NDArray[np.float64]
    """√(n Σ z² − (Σ z)²) [width]; infinity for a latent that is constant, so that its correlations are 0."""

    @staticmethod
    def of(codes: csr_array) -> _Side:
        wide = codes.astype(np.float64)
        sums = np.asarray(wide.sum(0), np.float64).reshape(-1)
        squares = np.asarray((wide * wide).sum(0), np.float64).reshape(-1)
        spread = np.sqrt(np.maximum(codes.shape[0] * squares - sums**2, 0))
        return _Side(csc_array(wide), sums, np.where(spread > 0, spread, np.inf))


def correlated(source: Activity, target: Activity, k: int) -> tuple[Nearest, Nearest]:
    """For every latent the k of the other site with the highest correlation, both ways.

    Both must have taken in the same tokens. A latent that never fires correlates 0 with everything.
    """
    left, right = _Side.of(source.matrix()), _Side.of(target.matrix())
    cpu = torch.device("cpu")
    forward, backward = (Best(a.width, k, torch.float64, cpu) for a in (source, target))
    for start in range(0, source.width, ROWS):
        tile = torch.from_numpy(_correlations(left, right, slice(start, start + ROWS)))
        forward.add(tile, 1, start, 0)
        backward.add(tile, 0, 0, start)
    return forward.found(), backward.found()


def _correlations(left: _Side, right: _Side, rows: slice) -> NDArray[np.float64]:
    tokens = left.codes.shape[0]
    products = (left.codes[:, rows].T @ right.codes).toarray()
    covariance = tokens * products - np.outer(left.sums[rows], right.sums)
    found: NDArray[np.float64] = covariance / np.outer(left.spread[rows], right.spread)
    return found
