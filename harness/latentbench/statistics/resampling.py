"""Units drawn again where every sample has units of its own, as latents of an SAE are."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentbench.statistics.arrays import Array, KeptArrays
from latentbench.statistics.intervals import RESAMPLES

_DRAWN = KeptArrays(64 << 20)
"""Draws are kept for the next record, which mostly has as many latents as the last."""
_PIECE = 1 << 20
"""Numbers of a piece of the matrix of counts: documents are few, but of latents it would take gigabytes."""
Draws: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.float64]"


def drawn_sums(stats: Array, stream: int) -> Array:
    """[statistics, resamples] sums of statistics [statistics, units] over units drawn again, apart in each stream."""
    draws = _draws(stream, stats.shape[1])
    rows = max(1, _PIECE // max(1, stats.shape[1]))
    pieces = [stats @ draws[i : i + rows].astype(np.float64, copy=False).T for i in range(0, RESAMPLES, rows)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def _draws(stream: int, units: int) -> Draws:
    """[resamples, units] how often each unit is drawn in each resample of a stream; as small numbers where there are many."""
    return _DRAWN.get((stream, units), lambda: _drawn(stream, units))


def _drawn(stream: int, units: int) -> Draws:
    # `stream` gives every sample draws of its own; with equal draws two SAEs would be paired by latent number.
    generator = np.random.default_rng([stream, units])
    rows = max(1, _PIECE // max(1, units))
    counts = np.concatenate([_counts(generator, min(rows, RESAMPLES - i), units) for i in range(0, RESAMPLES, rows)])
    # A matrix of one piece is kept as it is multiplied: the next row wants it again.
    kind = np.float64 if rows >= RESAMPLES else np.min_scalar_type(int(counts.max(initial=0)))
    return counts.astype(kind)


def _counts(generator: np.random.Generator, resamples: int, units: int) -> NDArray[np.int64]:
    # Numbered through, so that one count serves all resamples of the piece.
    drawn = generator.integers(units, size=(resamples, units)) + np.arange(resamples)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)
