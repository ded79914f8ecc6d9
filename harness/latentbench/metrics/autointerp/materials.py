"""What was collected at one budget, latent by latent, as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentbench.metrics.autointerp.best import Found, Integers
from latentbench.metrics.autointerp.cases import Material
from latentbench.metrics.autointerp.collect import Collected
from latentbench.metrics.autointerp.details import ShownExample
from latentbench.metrics.autointerp.examples import Window
from latentbench.metrics.autointerp.ground import Ground
from latentbench.metrics.autointerp.sampling import TEST, TRAIN


class Materials:
    """Everything collected at one budget; `near` [latents] are the columns of each latent's neighbours."""

    def __init__(self, ground: Ground, collected: Collected, near: Sequence[Sequence[int]], seed: int) -> None:
        self._texts, self._pool, self._collected = ground.texts, ground.pool, collected
        self._pool_sides, self._protocol = ground.sides[ground.pool.document], ground.protocol
        self._near, self._seed = near, seed

    def histogram(self, column: int) -> tuple[int, ...]:
        """Firing tokens of the latent in this column per bin of its activation."""
        return tuple(self._collected.histogram[column].tolist())

    def strongest(self, column: int, side: int) -> list[Window]:
        """The strongest windows of the latent in this column."""
        return self._texts.windows(_group(self._collected.strongest, column * 2 + side))

    def material(self, column: int, side: int) -> Material:
        """What the latent in this column has on one side."""
        reservoir = self._texts.windows(_group(self._collected.reservoir, column * 2 + side))
        strongest = self.strongest(column, side)
        silent = ~self._collected.pool_active[:, column] & (self._pool_sides == side)
        order = np.random.default_rng([self._seed, column, side]).permutation(np.flatnonzero(silent))
        hard = self._are_hard(order, column, {window.peak_token for window in (*strongest, *reservoir)})
        wanted = self._protocol.reservoir
        # Several times as many as wanted, because overlapping and equal texts are left out.
        chosen = np.concatenate([order[hard][:wanted], order[~hard][:wanted]])
        inactive = self._texts.inactive(self._pool, chosen, self._protocol.window)
        return Material(reservoir, strongest, inactive, frozenset(range(min(int(hard.sum()), wanted))))

    def shown(self, column: int, count: int) -> tuple[ShownExample, ...]:
        """The strongest windows of both sides, strongest first."""
        found = [(window, side) for side in (TRAIN, TEST) for window in self.strongest(column, side)]
        found.sort(key=lambda pair: -pair[0].peak)
        return tuple(
            ShownExample(
                tokens=window.tokens,
                activations=tuple(float(f"{value:.5g}") for value in window.activations),
                split="test" if side == TEST else "train",
                document=window.document,
            )
            for window, side in found[:count]
        )

    def _are_hard(self, places: Integers, column: int, peaks: set[str]) -> NDArray[np.bool_]:
        """[places] whether each drawn window is of the kind that is easily taken for one with the latent."""
        if self._protocol.hard_negatives == "neighbours":
            return np.asarray(self._collected.pool_active[places][:, self._near[column]].any(1))
        hard = np.zeros(len(places), dtype=np.bool_)
        if self._protocol.hard_negatives == "same_token":
            for i, place in enumerate(places.tolist()):
                document, start = int(self._pool.document[place]), int(self._pool.start[place])
                hard[i] = not peaks.isdisjoint(self._texts.pieces(document, start, self._protocol.window))
        return hard


def _group(found: Found, group: int) -> Found:
    first, last = np.searchsorted(found.group, [group, group + 1])
    return found.take(np.arange(first, last))
