"""The first pass: how often, how strongly and in how many windows every latent fires."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentbench.measure.batches import DocumentBatch
from latentbench.metrics.autointerp.activity import places_in_batch
from latentbench.metrics.autointerp.best import Floats, Integers
from latentbench.sae.codes import Codes


@dataclass(frozen=True)
class Surveyed:
    """What the first pass found at one budget."""

    firing: Integers
    """[width] tokens on which each latent fires."""
    maximum: Floats
    """[width] largest absolute activation."""
    cells: Integers
    """[2, width] pieces of `window` tokens, on either side, in which the latent fires at least once."""

    def eligible(self, explain: int, test: int) -> np.ndarray:
        """[width] bool: enough windows on both sides."""
        enough: np.ndarray = (self.cells[0] >= explain) & (self.cells[1] >= test)
        return enough


class Survey:
    """Counts, batch by batch; nothing larger than the codes themselves and a few numbers per latent is held."""

    def __init__(self, width: int, sides: Integers, window: int) -> None:
        self._width, self._sides, self._window = width, torch.from_numpy(sides), window
        self._firing = torch.zeros(width, dtype=torch.int64)
        self._maximum = torch.zeros(width)
        self._cells = torch.zeros(2 * width, dtype=torch.int64)

    def add(self, batch: DocumentBatch, codes: Codes) -> None:
        """Takes the codes of a batch's ordinary tokens."""
        active = codes.values != 0
        latent, strength = codes.indices[active].cpu(), codes.values[active].abs().float().cpu()
        self._firing += torch.bincount(latent, minlength=self._width)
        self._maximum.scatter_reduce_(0, latent, strength, "amax")
        rows, order = (place.cpu()[:, None].expand(active.shape)[active.cpu()] for place in places_in_batch(batch))
        self._count_cells(latent, rows, order // self._window, batch.documents)

    def _count_cells(self, latent: Tensor, row: Tensor, cell: Tensor, documents: Tensor) -> None:
        per_row = int(cell.max()) + 1 if len(cell) else 1
        distinct = torch.unique((row * per_row + cell) * self._width + latent)
        side = self._sides[documents[distinct // self._width // per_row]]
        self._cells += torch.bincount(side * self._width + distinct % self._width, minlength=2 * self._width)

    def finished(self) -> Surveyed:
        """The counts."""
        return Surveyed(self._firing.numpy(), self._maximum.numpy(), self._cells.view(2, -1).numpy())
