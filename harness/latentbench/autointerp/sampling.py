"""Every random choice of the study, each a function of a seed and of what is chosen from, never of the order of work.

Of all windows that are seen only the best per group by a key are kept, in bounded memory (`TopWindows`); with random keys that is a
uniform sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentbench.core.hashing import seed_of
from latentbench.statistics.arrays import Array

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]

_PENDING = 1 << 16
"""Windows taken in before the worse ones are let go."""


class FiringWindows(NamedTuple):
    """N windows in which latents fire."""

    group: Integers
    """[N] which latent and side."""
    document: Integers
    """[N] row of the document."""
    start: Integers
    """[N] number of the window's first token among the document's ordinary tokens."""
    activations: Floats
    """[N, window] of the group's latent; 0 behind the document's end."""

    @property
    def peaks(self) -> Floats:
        """[N] the strongest activation."""
        peaks: Floats = self.activations.max(1, initial=0)
        return peaks

    def take(self, chosen: Integers) -> FiringWindows:
        """Those of these numbers, in their order."""
        group, document, start, activations = self
        return FiringWindows(group[chosen], document[chosen], start[chosen], activations[chosen])

    @staticmethod
    def none(window: int) -> FiringWindows:
        """No window."""
        empty = np.zeros(0, dtype=np.int64)
        return FiringWindows(empty, empty, empty, np.zeros((0, window), dtype=np.float32))


class TopWindows:
    """Keeps, per group, the `size` windows of the smallest keys, whatever the order in which they come."""

    def __init__(self, size: int, window: int) -> None:
        self._size = size
        self._found, self._keys = [FiringWindows.none(window)], [np.zeros(0)]
        self._pending = 0

    def add(self, found: FiringWindows, keys: Array) -> None:
        """Takes windows with their keys [N]."""
        self._found.append(found)
        self._keys.append(keys)
        self._pending += len(keys)
        if self._pending > _PENDING:
            self._prune()

    def kept(self) -> FiringWindows:
        """The windows kept, by group and within a group by key."""
        self._prune()
        return self._found[0]

    def _prune(self) -> None:
        found = FiringWindows(*(np.concatenate(parts) for parts in zip(*self._found, strict=True)))
        keys = np.concatenate(self._keys)
        # Equal keys are ordered by place, so that what is kept does not depend on the order in which windows came.
        order = np.lexsort((found.start, found.document, keys, found.group))
        groups = found.group[order]
        rank = np.arange(len(groups)) - np.searchsorted(groups, groups)
        order = order[rank < self._size]
        self._found, self._keys, self._pending = [found.take(order)], [keys[order]], 0


TRAIN, TEST = 0, 1
"""The two sides: documents that explanations, and documents that scores are made from."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: the increment of SplitMix64."""


def sides(digests: Sequence[str], seed: int) -> Integers:
    """[documents] 0 or 1: half of the distinct documents each. Equal documents are on one side."""
    distinct = sorted(set(digests), key=lambda digest: seed_of(seed, "side", digest))
    train = set(distinct[: -(-len(distinct) // 2)])
    return np.array([TRAIN if digest in train else TEST for digest in digests], dtype=np.int64)


def stratified(firing: Integers, eligible: NDArray[np.bool_], count: int, seed: int) -> Integers:
    """At most `count` of the eligible latents, in order of their numbers, evenly over the order of density.

    The eligible are sorted by how often they fire (ties at random) and cut into `count` strata of equal size (they
    differ by at most one latent), one latent is drawn from each. So every latent has, up to that one, the same chance.
    """
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(np.flatnonzero(eligible))
    by_density = numbers[np.argsort(firing[numbers], kind="stable")]
    strata = np.array_split(by_density, min(count, len(by_density))) if len(by_density) else []
    return np.sort(np.array([generator.choice(stratum) for stratum in strata], dtype=np.int64))


def priorities(seed: int, *numbers: Integers) -> Array:
    """[N] uniform in [0, 1): hashes of rows of numbers. The smallest of them are a uniform sample of all rows."""
    state = np.full(len(numbers[0]), seed % 2**64, dtype=np.uint64)
    for part in numbers:
        state = _mixed(state ^ _mixed(part.astype(np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits, which a float64 holds without rounding


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class DrawnWindows:
    """Windows chosen before anything is known of activations: what negatives are taken from."""

    document: Integers
    """[N]"""
    start: Integers
    """[N] first token among the document's ordinary tokens."""


def window_start(centre: Integers, length: Integers, window: int) -> Integers:
    """The first token of a window around `centre` that is moved, not cut, at the ends of a document of `length`."""
    start: Integers = np.clip(centre - window // 2, 0, np.maximum(length - window, 0))
    return start


def random_windows(lengths: Integers, chosen: NDArray[np.bool_], window: int, count: int, seed: int) -> DrawnWindows:
    """At most `count` windows around tokens drawn evenly from the ordinary tokens of the `chosen` documents.

    `lengths` [documents] are numbers of ordinary tokens. Drawn without replacement, in random order.
    """
    documents = np.flatnonzero(chosen)
    ends = np.cumsum(lengths[documents])
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.random.default_rng(seed).permutation(total)[:count]
    # Tokens of all chosen documents are numbered through; `right`, since a document's end is the next one's first.
    which = np.searchsorted(ends, drawn, side="right")
    document = documents[which]
    centre = drawn - (ends[which] - lengths[document])
    return DrawnWindows(document, window_start(centre, lengths[document], window))
