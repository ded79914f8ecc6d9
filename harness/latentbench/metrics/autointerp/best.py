"""The few windows that are kept of all that are seen: the best per group, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentbench.metrics.base import Array

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]

_PENDING = 1 << 16
"""Windows taken in before the worse ones are let go."""


class Found(NamedTuple):
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

    def take(self, chosen: Integers) -> Found:
        """Those of these numbers, in their order."""
        group, document, start, activations = self
        return Found(group[chosen], document[chosen], start[chosen], activations[chosen])

    @staticmethod
    def none(window: int) -> Found:
        """No window."""
        empty = np.zeros(0, dtype=np.int64)
        return Found(empty, empty, empty, np.zeros((0, window), dtype=np.float32))


class Best:
    """Keeps, per group, the `size` windows of the smallest keys, whatever the order in which they come."""

    def __init__(self, size: int, window: int) -> None:
        self._size = size
        self._found, self._keys = [Found.none(window)], [np.zeros(0)]
        self._pending = 0

    def add(self, found: Found, keys: Array) -> None:
        """Takes windows with their keys [N]."""
        self._found.append(found)
        self._keys.append(keys)
        self._pending += len(keys)
        if self._pending > _PENDING:
            self._prune()

    def kept(self) -> Found:
        """The windows kept, by group and within a group by key."""
        self._prune()
        return self._found[0]

    def _prune(self) -> None:
        found = Found(*(np.concatenate(parts) for parts in zip(*self._found, strict=True)))
        keys = np.concatenate(self._keys)
        order = np.lexsort((found.start, found.document, keys, found.group))
        groups = found.group[order]
        rank = np.arange(len(groups)) - np.searchsorted(groups, groups)
        order = order[rank < self._size]
        self._found, self._keys, self._pending = [found.take(order)], [keys[order]], 0
