"""On what each latent fires, summed up over a domain in one pass.

Memory: a few numbers per latent, and 16 bytes per distinct pair of latent and token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.metrics.latents.encoding import Encoded, Entries

BINS_PER_OCTAVE = 2
LOWEST, HIGHEST = -12, 12
BINS = BINS_PER_OCTAVE * (HIGHEST - LOWEST)
"""Activations are counted in bins of half a factor of two from 2^-12 to 2^12; what is outside goes to the end bins."""
_PENDING = 1 << 22
"""Pairs that are kept uncounted before they are merged."""


class Usage:
    """Sums per latent over the documents given to `add`."""

    def __init__(self, width: int, vocabulary: int, device: torch.device) -> None:
        self.width = width
        self.tokens = 0
        """Ordinary tokens seen."""
        self.firing = torch.zeros(width, dtype=torch.int64, device=device)
        """[width] tokens on which the latent is active."""
        self.documents = torch.zeros_like(self.firing)
        """[width] documents in which it is active."""
        self.repeated = torch.zeros_like(self.firing)
        """[width] documents in which it is active on two tokens or more."""
        self.largest = torch.zeros(width, device=device)
        """[width] largest absolute activation."""
        self.histogram = torch.zeros(width, BINS, dtype=torch.int64, device=device)
        """[width, BINS] activations by size."""
        self._pairs = PairCounts(vocabulary, device)

    def add(self, part: Encoded) -> None:
        """Counts one batch of whole documents."""
        entries = Entries.of(part.codes)
        self.tokens += len(part.states)
        self.firing += torch.bincount(entries.latents, minlength=self.width)
        self.largest.scatter_reduce_(0, entries.latents, entries.values.abs().float(), "amax")
        self._count_documents(entries.latents, part.rows[entries.tokens], len(part.batch.documents))
        place = entries.latents * BINS + bins(entries.values)
        self.histogram += torch.bincount(place, minlength=self.width * BINS).view(self.width, BINS)
        self._pairs.add(entries.latents, part.ids[entries.tokens])

    def entropy(self) -> Tensor:
        """[width] float64, bits: H = −Σ_v p_v log2 p_v, where p_v is the share of token v among the latent's
        activations; 0 for a latent that never fires."""
        latents, _, counts = self._pairs.table()
        shares = counts.double() / self.firing[latents]
        terms = torch.zeros(self.width, dtype=torch.float64, device=counts.device)
        return terms.index_add_(0, latents, -shares * shares.log2()).clamp_min(0)

    def top_tokens(self, k: int) -> tuple[Tensor, Tensor]:
        """(token ids [width, k] int32, counts [width, k] int32) most frequent first; count 0 is padding."""
        latents, tokens, counts = self._pairs.table()
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(latents[order], stable=True)]
        rank = ranks(latents[order])
        kept = order[rank < k]
        place = latents[kept], rank[rank < k]
        ids = torch.zeros(self.width, k, dtype=torch.int32, device=counts.device)
        found = torch.zeros_like(ids)
        ids[place], found[place] = tokens[kept].int(), counts[kept].int()
        return ids, found

    def _count_documents(self, latents: Tensor, rows: Tensor, documents: int) -> None:
        groups, counts = torch.unique(latents * documents + rows, return_counts=True)
        owners = groups // documents
        self.documents += torch.bincount(owners, minlength=self.width)
        self.repeated += torch.bincount(owners[counts > 1], minlength=self.width)


class PairCounts:
    """How often each pair of latent and token occurs, as sorted keys: never a [width, vocabulary] table."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._keys = torch.zeros(0, dtype=torch.int64, device=device)
        self._counts = torch.zeros_like(self._keys)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._held = 0

    def add(self, latents: Tensor, tokens: Tensor) -> None:
        """Counts pairs [E], [E]."""
        keys, counts = torch.unique(latents * self._vocabulary + tokens, return_counts=True)
        self._pending.append((keys, counts))
        self._held += len(keys)
        if self._held > _PENDING:
            self._merge()

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """(latents, tokens, counts) [pairs] int64, ordered by latent and token."""
        self._merge()
        return self._keys // self._vocabulary, self._keys % self._vocabulary, self._counts

    def _merge(self) -> None:
        keys = torch.cat([self._keys, *(keys for keys, _ in self._pending)])
        counts = torch.cat([self._counts, *(counts for _, counts in self._pending)])
        self._keys, place = torch.unique(keys, return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(0, place, counts)
        self._pending, self._held = [], 0


def bins(values: Tensor) -> Tensor:
    """[E] int64: the bin of each activation by its absolute size."""
    octaves = (values.abs().float().log2() - LOWEST) * BINS_PER_OCTAVE
    return octaves.floor().long().clamp(0, BINS - 1)


def ranks(groups: Tensor) -> Tensor:
    """[n] int64: of each element of sorted `groups` [n], how many equal ones precede it."""
    starts = torch.searchsorted(groups, groups)
    return torch.arange(len(groups), device=groups.device) - starts
