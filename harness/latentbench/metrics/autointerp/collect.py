"""The second pass: windows of the sampled latents, and what they do in windows drawn beforehand.

Per latent and side two bounded sets are kept: a reservoir, which is a uniform sample of its peaks (one peak per piece of
`window` tokens), and the strongest. Quantiles are taken within the reservoir later, so that every quantile is sampled
evenly without knowing its borders beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentbench.canonical import seed_of
from latentbench.measure.batches import DocumentBatch
from latentbench.metrics.autointerp.activity import by_document, cut, watched
from latentbench.metrics.autointerp.best import Best, Floats, Found, Integers
from latentbench.metrics.autointerp.details import BINS, SHOWN
from latentbench.metrics.autointerp.ground import Ground
from latentbench.metrics.autointerp.sampling import priorities, window_start
from latentbench.sae.codes import Codes


@dataclass(frozen=True)
class Collected:
    """What the second pass found at one budget. A group is `column · 2 + side`."""

    reservoir: Found
    """By group, in random order."""
    strongest: Found
    """By group, strongest first."""
    pool_active: NDArray[np.bool_]
    """[places, watched] whether each watched latent fires anywhere in the window."""
    histogram: Integers
    """[latents, BINS]"""


class Collector:
    """Gathers the windows of `latents` [C]; `neighbours` [.] are watched in the drawn windows only.

    `maximum` [width] are the largest activations, for the histograms.
    """

    def __init__(self, ground: Ground, latents: Integers, neighbours: Integers, maximum: Floats) -> None:
        protocol = ground.protocol
        self._latents, self._count, self._width = latents, len(latents), ground.sae.width
        self._watched = np.concatenate([latents, neighbours])
        self._maximum = torch.from_numpy(maximum[latents])
        self._sides, self._lengths, self._pool = ground.sides, ground.texts.lengths, ground.pool
        self._window, self._seed = protocol.window, seed_of(ground.seed, "windows")
        self._middle = 2 * (protocol.radius // 2) + 1
        """Of a window's tokens, how many can be the strongest."""
        self._reservoir = Best(protocol.reservoir, self._window)
        self._strongest = Best(max(SHOWN, protocol.explain), self._window)
        self._pool_active = np.zeros((len(self._pool.document), len(self._watched)), dtype=np.bool_)
        self._histogram = torch.zeros(self._count * BINS, dtype=torch.int64)

    def add(self, batch: DocumentBatch, codes: Codes) -> None:
        """Takes the codes of a batch's ordinary tokens."""
        column_of = torch.full((self._width,), -1, device=codes.indices.device)
        column_of[torch.from_numpy(self._watched).to(column_of.device)] = torch.arange(
            len(self._watched), device=column_of.device
        )
        values = by_document(watched(codes, column_of, len(self._watched)), batch, self._window).cpu()
        self._add_pool(batch, values)
        self._add_peaks(batch, values[..., : self._count])
        self._add_histogram(values[..., : self._count])

    def finished(self) -> Collected:
        """Everything gathered."""
        histogram = self._histogram.view(self._count, BINS).numpy()
        return Collected(self._reservoir.kept(), self._strongest.kept(), self._pool_active, histogram)

    def _add_pool(self, batch: DocumentBatch, values: Tensor) -> None:
        row_of = np.full(len(self._sides), -1, dtype=np.int64)
        row_of[batch.documents.numpy()] = np.arange(len(batch.documents))
        rows = row_of[self._pool.document]
        here = np.flatnonzero(rows >= 0)
        windows = cut(values, torch.from_numpy(rows[here]), torch.from_numpy(self._pool.start[here]), self._window)
        self._pool_active[here] = (windows > 0).any(1).numpy()

    def _add_peaks(self, batch: DocumentBatch, values: Tensor) -> None:
        """One window around the strongest token of each piece of `window` tokens in which a latent fires."""
        pieces = values.view(len(values), values.shape[1] // self._window, self._window, self._count)
        peak, offset = pieces.max(2)
        row, piece, column = (peak > 0).nonzero(as_tuple=True)
        centre = (piece * self._window + offset[row, piece, column]).numpy()
        document = batch.documents[row].numpy()
        latent = self._latents[column.numpy()]
        # Not always in the middle, or the place of a mark would tell whether it is right.
        shift = np.floor(self._middle * priorities(self._seed + 1, latent, document, centre)).astype(np.int64)
        start = window_start(centre + shift - self._middle // 2, self._lengths[document], self._window)
        steps = torch.from_numpy(start)[:, None] + torch.arange(self._window)
        activations = values[row[:, None], steps, column[:, None]].numpy()
        found = Found(column.numpy() * 2 + self._sides[document], document, start, activations)
        self._reservoir.add(found, priorities(self._seed, latent, document, centre))
        self._strongest.add(found, -peak[row, piece, column].double().numpy())

    def _add_histogram(self, values: Tensor) -> None:
        *_, column = place = (values > 0).nonzero(as_tuple=True)
        bins = (values[place] / self._maximum[column] * BINS).long().clamp_max(BINS - 1)
        self._histogram += torch.bincount(column * BINS + bins, minlength=self._count * BINS)
