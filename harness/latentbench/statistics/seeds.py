"""The statistics of a row's seeds side by side, so that all its numbers come from a few operations.

Every number is a formula over sums, so a resample is one vector of counts, and what 2,000 resamples give of all statistics
of a record is one matrix product. Formulas then take rows of it, all seeds at once: however many numbers a table shows, a
record is resampled once, and what all seeds have alike (the documents' tokens, the model's own loss) once for all of them.
What a statistic sums up to does not depend on which others were asked for: they are multiplied in blocks that the records
alone decide, so that a number shown among ten or among a hundred has the same digits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from latentbench.statistics.arrays import Array, Statistics
from latentbench.statistics.intervals import RESAMPLES, weights
from latentbench.statistics.paired import mean_over_seeds
from latentbench.statistics.resampling import drawn_sums

_BLOCK = 256
"""Statistics that are multiplied together: 4 MiB of sums for each seed."""
_KEPT = 16
"""Blocks whose sums are kept."""
_SPARE: dict[tuple[int, ...], list[Array]] = {}
"""Room that sums have left, by its shape: a system takes as long to make megabytes anew as the sums take."""


class SeedStatistics:
    """Statistics of several seeds of one row, each with the same statistics over as many units."""

    def __init__(self, seeds: Sequence[Statistics]) -> None:
        self.seeds = seeds
        self._place: dict[str, tuple[int, int]] = {}
        """Number of a statistic's block, and its place there."""
        self._blocks: list[Array] = []
        """[seeds, statistics, units], of statistics that all seeds have alike [1, statistics, units]"""
        self._means: dict[int, Array] = {}
        self._sums: OrderedDict[tuple[int, bool], Array] = OrderedDict()
        lengths = [{name: len(array) for name, array in own.items()} for own in seeds]
        self.alike = all(own == lengths[0] for own in lengths)
        """Whether all this can be asked; seeds that differ in what they have are taken one by one."""
        for n in dict.fromkeys(lengths[0].values()) if self.alike else ():
            names = sorted(name for name, length in lengths[0].items() if length == n)
            for start in range(0, len(names), _BLOCK):
                self._add(names[start : start + _BLOCK])

    def _add(self, block: Sequence[str]) -> None:
        flat = np.concatenate([own[name] for own in self.seeds for name in block])
        together = flat.reshape(len(self.seeds), len(block), -1)
        alike = (together[1:] == together[0]).all(axis=(0, 2))
        for chosen, stats in ((alike, together[:1, alike]), (~alike, together[:, ~alike])):
            if chosen.any():
                names = [name for name, here in zip(block, chosen.tolist(), strict=True) if here]
                self._place |= {name: (len(self._blocks), row) for row, name in enumerate(names)}
                self._blocks.append(stats)

    @property
    def bytes(self) -> int:
        """What the statistics take in memory."""
        return sum(array.nbytes for own in self.seeds for array in own.values()) + sum(b.nbytes for b in self._blocks)

    def forget(self) -> None:
        """Lets go of the sums over resamples, a hundred times as large."""
        for sums in self._sums.values():
            if len(spare := _SPARE.setdefault(sums.shape, [])) < 2 and len(_SPARE) <= _KEPT:
                spare.append(sums)
        self._sums.clear()

    def units(self, names: Sequence[str]) -> int | None:
        """Over how many units some statistics are; None where one is not there or they differ in that."""
        places = [self._place.get(name) for name in names]
        lengths = {None if place is None else self._blocks[place[0]].shape[2] for place in places}
        return lengths.pop() if len(lengths) == 1 else None

    def stats(self, names: Sequence[str]) -> Array:
        """[seeds, names, units] the statistics themselves, all over as many units."""
        return self._side_by_side(self._blocks[block][:, row] for block, row in self._places(names))

    def means(self, names: Sequence[str]) -> list[Array]:
        """[names][units] their means over seeds."""
        return [self._mean(block)[row] for block, row in self._places(names)]

    def sums(self, names: Sequence[str], apart: bool) -> Array:
        """[seeds, names, resamples] their sums over units drawn again.

        Documents of the same number are drawn alike in every seed and row, which pairs them; units that are things of
        their own (latents) are drawn `apart` in every seed.
        """
        return self._side_by_side(self._resampled(block, apart)[:, row] for block, row in self._places(names))

    def _places(self, names: Sequence[str]) -> Iterable[tuple[int, int]]:
        return map(self._place.__getitem__, names)

    def _side_by_side(self, arrays: Iterable[Array]) -> Array:
        """[seeds, names, …] of arrays [seeds, …] for each name; what all seeds have alike takes the room of one."""
        found, seeds = list(arrays), len(self.seeds)
        if len({len(array) for array in found}) > 1:
            found = [np.broadcast_to(array, (seeds, *array.shape[1:])) for array in found]
        together = np.stack(found, axis=1)
        return np.broadcast_to(together, (seeds, *together.shape[1:]))

    def _mean(self, block: int) -> Array:
        if block not in self._means:
            stats = self._blocks[block]
            every = np.broadcast_to(stats, (len(self.seeds), *stats.shape[1:]))
            self._means[block] = mean_over_seeds(every)  # type: ignore[arg-type]
        return self._means[block]

    def _resampled(self, block: int, apart: bool) -> Array:
        found = self._sums.get((block, apart))
        if found is None:
            found = self._sums[block, apart] = self._drawn(self._blocks[block], apart)
            if len(self._sums) > _KEPT:
                self._sums.popitem(last=False)
        return found

    def _drawn(self, stats: Array, apart: bool) -> Array:
        seeds, names, units = stats.shape
        found = _room(len(self.seeds) if apart else seeds, names, RESAMPLES)
        if not apart:
            return np.matmul(stats, weights(units).T, out=found)
        for stream in range(len(self.seeds)):
            found[stream] = drawn_sums(stats[min(stream, seeds - 1)], stream)
        return found


def _room(*shape: int) -> Array:
    spare = _SPARE.get(shape)
    return spare.pop() if spare else np.empty(shape)
