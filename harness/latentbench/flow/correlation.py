"""Latents that fire together: Pearson correlations of two sites' sparse codes, without a width × width matrix.

r_ij = (n Σ z_i z_j − Σ z_i Σ z_j) / √((n Σ z_i² − (Σ z_i)²)(n Σ z_j² − (Σ z_j)²)), in float64.

Memory: the codes of all tokens, so it grows with them: 8 bytes per active latent of either site, and 20 more per two for
copies of both, 230 MB for 100,000 tokens with 64 active latents at each site. On top of that one tile: correlations of a few
latents with the whole other dictionary, TILE of them however wide it is, in at most 28 bytes each (117 MB).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from latentbench.flow.activity import Activity
from latentbench.flow.matching import Best, Nearest

TILE = 1 << 22
"""Correlations that exist at once."""


@dataclass(frozen=True)
class _Moments:
    sums: NDArray[np.float64]
    """Σ z [width]."""
    spread: NDArray[np.float64]
    """√(n Σ z² − (Σ z)²) [width]; infinity for a latent that is constant, so that its correlations are 0."""

    @staticmethod
    def of(codes: csr_array) -> _Moments:
        values, (tokens, width) = codes.data.astype(np.float64), codes.shape
        sums = np.bincount(codes.indices, weights=values, minlength=width).astype(np.float64)
        squares = np.bincount(codes.indices, weights=values * values, minlength=width).astype(np.float64)
        spread = np.sqrt(np.maximum(tokens * squares - sums**2, 0))
        return _Moments(sums, np.where(spread > 0, spread, np.inf))


def correlated(source: Activity, target: Activity, k: int) -> tuple[Nearest, Nearest]:
    """For every latent the k of the other site with the highest correlation, both ways.

    Both must have taken in the same tokens. A latent that never fires correlates 0 with everything.
    """
    left, right = source.matrix(), target.matrix()
    moments = _Moments.of(left), _Moments.of(right)
    columns, wide = csc_array(left), right.astype(np.float64)
    cpu = torch.device("cpu")
    forward, backward = (Best(a.width, k, torch.float64, cpu) for a in (source, target))
    step = max(1, TILE // target.width)
    tile = np.empty((min(step, source.width), target.width))
    for start in range(0, source.width, step):
        rows = slice(start, min(start + step, source.width))
        found = torch.from_numpy(_correlations(columns[:, rows], wide, moments, rows, tile[: rows.stop - start]))
        forward.add(found, 1, start, 0)
        backward.add(found, 0, 0, start)
    return forward.found(), backward.found()


def _correlations(
    columns: csc_array, codes: csr_array, moments: tuple[_Moments, _Moments], rows: slice, tile: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Those of some latents, `columns` [tokens, n], with all others, written to `tile` [n, width]."""
    (one, other), tokens = moments, codes.shape[0]
    (columns.astype(np.float64).T @ codes).toarray(out=tile)
    for row, total, spread in zip(tile, one.sums[rows], one.spread[rows], strict=True):
        row *= tokens
        row -= total * other.sums
        row /= spread * other.spread
    return tile
