"""Document-clustered bootstrap intervals.

Documents, not tokens, are the independent units: tokens of one document resemble each other. All documents are drawn
again with replacement, as multinomial weights; the formula is re-evaluated on the re-weighted sums. The same weights
serve every estimator and every SAE on the same documents, so differences are paired.

The plain percentile interval is too short for few documents. The "expanded percentile" (Hesterberg 2015, The American
Statistician 69:371, section 4) takes the quantiles at Φ(±√(n/(n−1)) · t_{α/2, n−1}) instead of ±z_{α/2}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from latentbench.statistics.arrays import Array, KeptArrays

RESAMPLES = 2000
"""Enough that the ends of a 95 % interval rest on some fifty resamples each."""
MINIMUM_DOCUMENTS = 10
"""Below this the bootstrap distribution is too coarse for an interval."""
METHOD = "{} bootstrap, expanded percentile"


class Bounds(NamedTuple):
    """The ends of an interval, its level, and how it was computed."""

    low: float
    high: float
    level: float
    method: str


def document_interval(
    formula: Callable[..., Array], statistics: Array, level: float = 0.95, seed: int = 0, units: str = "documents"
) -> Bounds | None:
    """Interval of a formula over sums of statistics [documents, inputs], or per whatever `units` are.

    None for fewer than 10 documents, or when the formula is not finite on every resample.
    """
    documents = len(statistics)
    if documents < MINIMUM_DOCUMENTS:
        return None
    # One matrix product instead of 2,000 passes: every number is a formula over sums, so weights are all a resample is.
    sums = weights(documents, seed) @ statistics
    with np.errstate(all="ignore"):
        values = formula(*sums.T)
    # Leaving out the resamples on which a ratio is 0/0 would leave an interval of other documents than were measured.
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, expanded_levels(documents, level))
    return Bounds(float(low), float(high), level, METHOD.format(units.removesuffix("s")))


def quantiles(values: Array, levels: Sequence[float]) -> Array:
    """[levels, ...] quantiles over the last axis [..., resamples], linear between order statistics, as `np.quantile` gives them.

    Sorting rows in place of its selection is several times quicker for many numbers at once.
    """
    ordered, last = np.sort(values, axis=-1), values.shape[-1] - 1
    found = []
    for level in levels:
        before = min(math.floor(last * level), last)
        share = last * level - before
        low, high = ordered[..., before], ordered[..., min(before + 1, last)]
        # From the nearer end, as numpy does, so that the digits are the same.
        found.append(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))
    return np.stack(found)


_WEIGHTS = KeptArrays(128 << 20)


def weights(documents: int, seed: int = 0, resamples: int = RESAMPLES) -> Array:
    """[resamples, documents] how often each document is drawn in each resample.

    They depend on the number of documents and the seed alone: two rows over the same documents are drawn alike, which pairs
    them, and the same records give the same table on every machine.
    """
    return _WEIGHTS.get((documents, seed, resamples), lambda: _weights(documents, seed, resamples))


def _weights(documents: int, seed: int, resamples: int) -> Array:
    generator = np.random.default_rng([seed, documents])
    drawn = generator.multinomial(documents, np.full(documents, 1 / documents), size=resamples).astype(np.float64)
    drawn.flags.writeable = False  # everybody is handed the same array
    return drawn


@lru_cache(maxsize=256)
def expanded_levels(documents: int, level: float) -> tuple[float, float]:
    """The two quantile levels of the expanded percentile interval.

    √(n/(n−1)) undoes the bias of the bootstrap's variance, which divides by n; t instead of z allows for that variance being
    estimated. At n = 10 and 95 % the levels are 0.9 % and 99.1 % instead of 2.5 % and 97.5 %.
    """
    # Here and not above, as in all of these files: it takes a quarter of a second, and tables of known records need none of it.
    from scipy.special import ndtr, stdtrit

    widened = math.sqrt(documents / (documents - 1)) * stdtrit(documents - 1, (1 + level) / 2)
    tail = float(ndtr(-widened))
    return tail, 1 - tail
