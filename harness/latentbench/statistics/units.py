"""What counts once: things that repeat each other are one independent unit of intervals and tests.

A hundred copies of five documents say no more than the five. Every number is a formula over sums
(harness/latentbench/metrics/base.py), so where the statistics of copies are added up into those of one unit, the number
stays what it was, and whatever draws, exchanges or leaves out units takes copies together: there is no second code path.
Which things are one depends on the things alone, so two rows over the same documents merge them alike and stay paired.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentbench.statistics.arrays import Array, Statistics


@dataclass(frozen=True)
class Units:
    """Which of some things are one unit."""

    numbers: NDArray[np.int64]
    """[things] the unit of each; units are numbered in the order in which they first appear."""

    def __len__(self) -> int:
        """How many units there are."""
        return int(self.numbers.max(initial=-1)) + 1

    @property
    def repeats(self) -> int:
        """How many things repeat one that came before."""
        return len(self.numbers) - len(self)

    def of(self, chosen: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_] | slice) -> Units:
        """The units of some of the things, numbered anew."""
        return units_of(self.numbers[chosen].tolist())

    def shared(self, labels: Sequence[str]) -> tuple[str, ...]:
        """[things] the smallest label of its unit for each: what is split or seeded by it keeps copies together."""
        smallest: dict[int, str] = {}
        for number, label in zip(self.numbers.tolist(), labels, strict=True):
            smallest[number] = min(label, smallest.get(number, label))
        return tuple(smallest[number] for number in self.numbers.tolist())

    def summed(self, statistics: Statistics) -> Statistics:
        """Statistics [units] from statistics [things]: the very same ones where nothing repeats."""
        if not self.repeats:
            return statistics
        return {name: self._added(values) for name, values in statistics.items()}

    def _added(self, values: Array) -> Array:
        return np.bincount(self.numbers, weights=values).astype(np.float64)


def units_of(*likenesses: Iterable[Hashable]) -> Units:
    """Things are one unit where any of their likenesses agree, directly or through others.

    Each likeness gives one value per thing, in the same order.
    """
    # Here and not above: scipy.sparse takes a fifth of a second to import, and only measuring needs it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # One link per thing and likeness, to the first that is like it, spans the same components as all pairs would.
    links = [link for likeness in likenesses for link in _links(likeness)]
    if not links:
        return Units(np.zeros(0, dtype=np.int64))
    things, firsts = np.array(links, dtype=np.int64).T
    count = int(things.max()) + 1
    graph = coo_array((np.ones(len(links), dtype=np.int8), (things, firsts)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    # The components' labels are scipy's choice; numbered by first appearance they are the same in every version.
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    return Units(np.argsort(np.argsort(first))[numbers].astype(np.int64))


def _links(likeness: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Each thing with the first one that is like it."""
    seen: dict[Hashable, int] = {}
    return [(thing, seen.setdefault(value, thing)) for thing, value in enumerate(likeness)]
