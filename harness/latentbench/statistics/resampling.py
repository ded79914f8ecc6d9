"""Sums over units that are drawn again, of all statistics of a record at once.

Every number is a formula over sums, so a resample is one vector of counts, and what 2,000 resamples give of all statistics
of a record is one matrix product. Formulas then take rows of it: however many numbers a table shows, a record is resampled
once. What a statistic sums up to does not depend on which others were asked for: they are multiplied in blocks that the
record alone decides, so that a number shown among ten or among a hundred has the same digits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentbench.statistics.arrays import Array, KeptArrays, Statistics
from latentbench.statistics.intervals import RESAMPLES, weights

_BLOCK = 256
"""Statistics that are multiplied together: at most 4 MiB of sums."""
_KEPT_BLOCKS = 64
_DRAWN = KeptArrays(64 << 20)
"""Draws are kept for the next record, which mostly has as many latents as the last."""
_PIECE = 1 << 20
"""Numbers of a piece of the matrix of counts: documents are few, but of latents it would take gigabytes."""
Draws: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]"


class Resampled:
    """The sums of one record's statistics on all resamples, worked out when they are asked for.

    Documents of the same number are drawn alike in every record, which pairs them; units that are things of their own
    (latents) are drawn apart in each `stream`.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._place = _places(statistics)
        self._blocks: OrderedDict[Hashable, Array] = OrderedDict()

    def sums(self, names: Sequence[str], stream: int | None = None) -> list[Array]:
        """[resamples] of each statistic; the same draws as in every record without a stream. Raises KeyError for an unknown name."""
        return [self._block(*self._place[name][:2], stream)[self._place[name][2]] for name in names]

    def _block(self, units: int, block: tuple[str, ...], stream: int | None) -> Array:
        found = self._blocks.get((units, block[0], stream))
        if found is None:
            stats = np.stack([self._statistics[name] for name in block])
            found = stats @ weights(units).T if stream is None else drawn_sums(stats, stream)
            self._blocks[units, block[0], stream] = found
            if len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return found


def _places(statistics: Statistics) -> dict[str, tuple[int, tuple[str, ...], int]]:
    """Of each statistic its number of units, the names that it is multiplied with, and its place among them."""
    alike: dict[int, list[str]] = {}
    for name in sorted(statistics):
        alike.setdefault(len(statistics[name]), []).append(name)
    blocks = [(n, tuple(names[i : i + _BLOCK])) for n, names in alike.items() for i in range(0, len(names), _BLOCK)]
    return {name: (n, block, row) for n, block in blocks for row, name in enumerate(block)}


def drawn_sums(stats: Array, stream: int) -> Array:
    """[statistics, resamples] sums of statistics [statistics, units] over units drawn again, apart in each stream."""
    draws = _draws(stream, stats.shape[1])
    rows = max(1, _PIECE // max(1, stats.shape[1]))
    pieces = [stats @ draws[i : i + rows].astype(np.float64).T for i in range(0, RESAMPLES, rows)]
    return np.concatenate(pieces, axis=1)


def _draws(stream: int, units: int) -> Draws:
    """[resamples, units] how often each unit is drawn in each resample of a stream, as small numbers."""
    return _DRAWN.get((stream, units), lambda: _drawn(stream, units))


def _drawn(stream: int, units: int) -> Draws:
    # `stream` gives every sample draws of its own; with equal draws two SAEs would be paired by latent number.
    generator = np.random.default_rng([stream, units])
    rows = max(1, _PIECE // max(1, units))
    counts = np.concatenate([_counts(generator, min(rows, RESAMPLES - i), units) for i in range(0, RESAMPLES, rows)])
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _counts(generator: np.random.Generator, resamples: int, units: int) -> NDArray[np.int64]:
    # Numbered through, so that one count serves all resamples of the piece.
    drawn = generator.integers(units, size=(resamples, units)) + np.arange(resamples)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)
