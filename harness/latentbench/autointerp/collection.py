"""The second pass: windows of the sampled latents and of what is easily taken for them, as text, latent by latent.

Per latent and side two bounded sets are kept: a reservoir, which is a uniform sample of its peaks (one peak per segment
of `window` tokens), and the strongest. Quantiles are taken within the reservoir later, so that every quantile is sampled
evenly without knowing its borders beforehand. What the latents do in the windows drawn beforehand says which of them are inactive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from latentbench.autointerp.passes import EvaluationSetup, by_document, cut, watched
from latentbench.autointerp.questions import ExamplePool
from latentbench.autointerp.sampling import (
    TEST,
    TRAIN,
    FiringWindows,
    Floats,
    Integers,
    TopWindows,
    priorities,
    window_start,
)
from latentbench.autointerp.scores import BINS, SHOWN, ShownExample
from latentbench.autointerp.windows import Window
from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.reconstruction.documents import DocumentBatch
from latentbench.sae.autoencoder import Codes, SparseAutoencoder

NEIGHBOURS = 8
_AT_ONCE = 64
"""Latents whose cosines to all others exist together."""


def decoder_neighbours(sae: SparseAutoencoder, latents: Integers) -> tuple[Integers, list[list[int]]]:
    """The latents [.] with the largest decoder cosine to any of `latents` [C], and for each of these its eight as columns
    of [C + .].

    Raises InvalidInput for an SAE without decoder rows.
    """
    rows = sae.decoder_rows()
    if rows is None:
        raise InvalidInput("`hard_negatives: neighbours` needs an SAE with decoder rows; use `same_token`")
    directions, count = normalize(rows.detach().float()), min(NEIGHBOURS + 1, len(rows))
    near = []
    for part in torch.split(torch.from_numpy(latents).to(directions.device), _AT_ONCE):
        cosine = directions[part] @ directions.T
        cosine[torch.arange(len(part), device=part.device), part] = -2  # not itself
        near.append(cosine.topk(count, dim=1).indices[:, : count - 1].cpu())
    numbers = torch.cat(near).numpy() if near else np.zeros((0, count - 1), dtype=np.int64)
    others = np.setdiff1d(numbers, latents)
    column_of = {int(latent): column for column, latent in enumerate((*latents, *others))}
    return others, [[column_of[int(latent)] for latent in row] for row in numbers]


@dataclass(frozen=True)
class Collected:
    """What the second pass found at one budget. A group is `column · 2 + side`."""

    reservoir: FiringWindows
    """By group, in random order."""
    strongest: FiringWindows
    """By group, strongest first."""
    drawn_active: NDArray[np.bool_]
    """[drawn, watched] whether each watched latent fires anywhere in each of the windows drawn beforehand."""
    histogram: Integers
    """[latents, BINS]"""


class Collector:
    """Gathers the windows of `latents` [C]; `neighbours` [.] are watched in the drawn windows only.

    `maximum` [width] are the largest activations, for the histograms.
    """

    def __init__(self, setup: EvaluationSetup, latents: Integers, neighbours: Integers, maximum: Floats) -> None:
        protocol = setup.protocol
        self._latents, self._count, self._width = latents, len(latents), setup.sae.width
        self._watched = np.concatenate([latents, neighbours])
        self._maximum = torch.from_numpy(maximum[latents])
        self._sides, self._lengths, self._drawn = setup.sides, setup.texts.lengths, setup.drawn
        self._window, self._seed = protocol.window, seed_of(setup.seed, "windows")
        self._middle = 2 * (protocol.radius // 2) + 1
        """Of a window's tokens, how many can be the strongest."""
        self._reservoir = TopWindows(protocol.reservoir, self._window)
        # More than are explained from: what overlaps or repeats another is left out when questions are built.
        self._strongest = TopWindows(max(SHOWN, protocol.explain), self._window)
        self._drawn_active = np.zeros((len(self._drawn.document), len(self._watched)), dtype=np.bool_)
        self._histogram = torch.zeros(self._count * BINS, dtype=torch.int64)

    def add(self, batch: DocumentBatch, codes: Codes) -> None:
        """Takes the codes of a batch's ordinary tokens."""
        column_of = torch.full((self._width,), -1, device=codes.indices.device)
        column_of[torch.from_numpy(self._watched).to(column_of.device)] = torch.arange(
            len(self._watched), device=column_of.device
        )
        values = by_document(watched(codes, column_of, len(self._watched)), batch, self._window).cpu()
        self._add_drawn(batch, values)
        self._add_peaks(batch, values[..., : self._count])
        self._add_histogram(values[..., : self._count])

    def finished(self) -> Collected:
        """Everything gathered."""
        histogram = self._histogram.view(self._count, BINS).numpy()
        return Collected(self._reservoir.kept(), self._strongest.kept(), self._drawn_active, histogram)

    def _add_drawn(self, batch: DocumentBatch, values: Tensor) -> None:
        """What the watched latents do in those of the drawn windows whose documents are in the batch."""
        row_of = np.full(len(self._sides), -1, dtype=np.int64)
        row_of[batch.documents.numpy()] = np.arange(len(batch.documents))
        rows = row_of[self._drawn.document]
        here = np.flatnonzero(rows >= 0)
        windows = cut(values, torch.from_numpy(rows[here]), torch.from_numpy(self._drawn.start[here]), self._window)
        self._drawn_active[here] = (windows > 0).any(1).numpy()

    def _add_peaks(self, batch: DocumentBatch, values: Tensor) -> None:
        """One window around the strongest token of each segment of `window` tokens in which a latent fires."""
        segments = values.view(len(values), values.shape[1] // self._window, self._window, self._count)
        peak, offset = segments.max(2)
        row, segment, column = (peak > 0).nonzero(as_tuple=True)
        centre = (segment * self._window + offset[row, segment, column]).numpy()
        document = batch.documents[row].numpy()
        latent = self._latents[column.numpy()]
        # Not always in the middle, or the place of a mark would tell whether it is right.
        shift = np.floor(self._middle * priorities(self._seed + 1, latent, document, centre)).astype(np.int64)
        start = window_start(centre + shift - self._middle // 2, self._lengths[document], self._window)
        steps = torch.from_numpy(start)[:, None] + torch.arange(self._window)
        activations = values[row[:, None], steps, column[:, None]].numpy()
        found = FiringWindows(column.numpy() * 2 + self._sides[document], document, start, activations)
        self._reservoir.add(found, priorities(self._seed, latent, document, centre))
        self._strongest.add(found, -peak[row, segment, column].double().numpy())

    def _add_histogram(self, values: Tensor) -> None:
        *_, column = place = (values > 0).nonzero(as_tuple=True)
        bins = (values[place] / self._maximum[column] * BINS).long().clamp_max(BINS - 1)
        self._histogram += torch.bincount(column * BINS + bins, minlength=self._count * BINS)


class ExamplePools:
    """Everything collected at one budget; `near` [latents] are the columns of each latent's neighbours."""

    def __init__(self, setup: EvaluationSetup, collected: Collected, near: Sequence[Sequence[int]], seed: int) -> None:
        self._texts, self._drawn, self._collected = setup.texts, setup.drawn, collected
        self._drawn_sides, self._protocol = setup.sides[setup.drawn.document], setup.protocol
        self._near, self._seed = near, seed

    def histogram(self, column: int) -> tuple[int, ...]:
        """Firing tokens of the latent in this column per bin of its activation."""
        return tuple(self._collected.histogram[column].tolist())

    def strongest(self, column: int, side: int) -> list[Window]:
        """The strongest windows of the latent in this column."""
        return self._texts.windows(_group(self._collected.strongest, column * 2 + side))

    def pool(self, column: int, side: int) -> ExamplePool:
        """What the latent in this column has on one side."""
        reservoir = self._texts.windows(_group(self._collected.reservoir, column * 2 + side))
        strongest = self.strongest(column, side)
        silent = ~self._collected.drawn_active[:, column] & (self._drawn_sides == side)
        order = np.random.default_rng([self._seed, column, side]).permutation(np.flatnonzero(silent))
        hard = self._are_hard(order, column, {window.peak_token for window in (*strongest, *reservoir)})
        wanted = self._protocol.spare
        # Several times as many as wanted, because overlapping and equal texts are left out.
        chosen = np.concatenate([order[hard][:wanted], order[~hard][:wanted]])
        inactive = self._texts.inactive(self._drawn, chosen, self._protocol.window)
        return ExamplePool(reservoir, strongest, inactive, frozenset(range(min(int(hard.sum()), wanted))))

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

    def _are_hard(self, chosen: Integers, column: int, peaks: set[str]) -> NDArray[np.bool_]:
        """[chosen] whether each of these drawn windows is easily taken for one with the latent."""
        if self._protocol.hard_negatives == "neighbours":
            return np.asarray(self._collected.drawn_active[chosen][:, self._near[column]].any(1))
        hard = np.zeros(len(chosen), dtype=np.bool_)
        if self._protocol.hard_negatives == "same_token":
            for i, number in enumerate(chosen.tolist()):
                document, start = int(self._drawn.document[number]), int(self._drawn.start[number])
                hard[i] = not peaks.isdisjoint(self._texts.tokens(document, start, self._protocol.window))
        return hard


def _group(found: FiringWindows, group: int) -> FiringWindows:
    first, last = np.searchsorted(found.group, [group, group + 1])
    return found.take(np.arange(first, last))
