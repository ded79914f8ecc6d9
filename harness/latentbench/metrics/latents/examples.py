"""The strongest examples of every latent: the windows of tokens around its peaks, at most one per document.

One pass, bounded memory: width × examples × window token ids and activations, whatever the number of documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.metrics.latents.encoding import Encoded, Entries
from latentbench.metrics.latents.usage import ranks

PADDING = -1


@dataclass(frozen=True)
class Windows:
    """Examples of latents, strongest first; n is the width or any number of latents."""

    peaks: Tensor
    """[n, examples] float32: the activation at the peak; 0 where there is no such example."""
    documents: Tensor
    """[n, examples] int32."""
    starts: Tensor
    """[n, examples] int32: place of the window's first token in its document."""
    ids: Tensor
    """[n, examples, window] int32 token ids; -1 beyond the document's end."""
    activations: Tensor
    """[n, examples, window] float16: the latent's activation at each token."""

    @staticmethod
    def empty(width: int, examples: int, window: int, device: torch.device | None = None) -> Windows:
        """No example yet."""
        return Windows(
            torch.zeros(width, examples, device=device),
            torch.zeros(width, examples, dtype=torch.int32, device=device),
            torch.zeros(width, examples, dtype=torch.int32, device=device),
            torch.full((width, examples, window), PADDING, dtype=torch.int32, device=device),
            torch.zeros(width, examples, window, dtype=torch.float16, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """By field, on the CPU."""
        return {name: tensor.cpu() for name, tensor in vars(self).items()}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Windows:
        """The inverse of `tensors`."""
        return Windows(**{name: tensors[name] for name in Windows.__dataclass_fields__})

    def of_latents(self, latents: Tensor) -> Windows:
        """Only those of some latents [n]."""
        return Windows(**{name: tensor[latents] for name, tensor in vars(self).items()})


class TopExamples:
    """Keeps the strongest examples of the documents given to `add`."""

    def __init__(self, width: int, examples: int, window: int, device: torch.device) -> None:
        self.found = Windows.empty(width, examples, window, device)
        self._examples, self._window = examples, window

    def add(self, part: Encoded) -> None:
        """Looks through one batch of whole documents."""
        entries = Entries.of(part.codes)
        weakest = self.found.peaks[:, -1]
        peaks = document_peaks(entries, part.rows, entries.values > weakest[entries.latents])
        order = torch.argsort(entries.values[peaks], descending=True, stable=True)
        order = order[torch.argsort(entries.latents[peaks][order], stable=True)]
        rank = ranks(entries.latents[peaks][order])
        best = peaks[order][rank < self._examples]
        if len(best):
            self._merge(entries.latents[best], rank[rank < self._examples], self._windows(part, entries, best))

    def _windows(self, part: Encoded, entries: Entries, best: Tensor) -> Windows:
        """The windows around the entries `best` [C], each field without the dimension of examples."""
        tokens, latents = entries.tokens[best], entries.latents[best]
        rows, positions, lengths = part.rows[tokens], part.positions[tokens], part.batch.real.sum(1)
        starts = (positions - self._window // 2).clamp(max=lengths[rows] - self._window).clamp_min(0)
        places = starts[:, None] + torch.arange(self._window, device=starts.device)
        inside = places < lengths[rows][:, None]
        places = places.clamp_max(part.batch.ids.shape[1] - 1)
        ids = part.batch.ids[rows[:, None], places].masked_fill(~inside, PADDING)
        number = torch.full(part.batch.ordinary.shape, PADDING, device=tokens.device)
        number[part.batch.ordinary] = torch.arange(len(part.states), device=tokens.device)
        numbers = number[rows[:, None], places].masked_fill(~inside, PADDING)
        documents = part.batch.documents.to(rows.device)[rows]
        activations = activations_at(entries, numbers, latents, len(self.found.peaks))
        return Windows(entries.values[best].float(), documents.int(), starts.int(), ids.int(), activations.half())

    def _merge(self, latents: Tensor, rank: Tensor, windows: Windows) -> None:
        """Puts candidate number i of latent `latents[i]` beside what is kept, and keeps the strongest of both."""
        touched, place = torch.unique(latents, return_inverse=True)
        kept = self.found.of_latents(touched)
        fresh = Windows.empty(len(touched), self._examples, self._window, latents.device)
        for name, tensor in vars(windows).items():
            getattr(fresh, name)[place, rank] = tensor
        peaks = torch.cat([kept.peaks, fresh.peaks], 1)
        order = torch.argsort(peaks, dim=1, descending=True, stable=True)[:, : self._examples]
        row = torch.arange(len(touched), device=latents.device)[:, None]
        for name, tensor in vars(self.found).items():
            tensor[touched] = torch.cat([getattr(kept, name), getattr(fresh, name)], 1)[row, order]


def document_peaks(entries: Entries, rows: Tensor, wanted: Tensor) -> Tensor:
    """[peaks] int64: of the `wanted` entries, for every latent and document the strongest (the first of equal ones)."""
    chosen = wanted.nonzero().squeeze(1)
    chosen = chosen[torch.argsort(entries.values[chosen], descending=True, stable=True)]
    groups = entries.latents[chosen] * (int(rows.max()) + 1 if len(rows) else 1) + rows[entries.tokens[chosen]]
    order = torch.argsort(groups, stable=True)
    return chosen[order][ranks(groups[order]) == 0]


def activations_at(entries: Entries, numbers: Tensor, latents: Tensor, width: int) -> Tensor:
    """[C, window] activations of `latents` [C] at the tokens `numbers` [C, window] of the batch (-1: none)."""
    keys, order = (entries.tokens * width + entries.latents).sort()
    wanted = numbers * width + latents[:, None]
    places = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    found = (keys[places] == wanted) & (numbers != PADDING)
    return torch.where(found, entries.values[order][places], 0)
