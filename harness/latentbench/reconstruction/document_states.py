"""Hidden states of an evaluation domain's documents from the store: one forward pass serves every SAE and every later run.

What is kept are the states of all tokens, padding included, of the batches in which the documents are run, because a kernel
may sum up in another order where the padded length is another: so what is read is what would be computed, bit for bit.
Where reconstructions are spliced in, the last block's output is kept too. Norm and head alone turn it into the clean logits,
which would take thousands of times the room; so measuring one more SAE runs the head, and the blocks behind its site.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latentbench.activations.batching import TOKENS_PER_FORWARD, batch_sizes
from latentbench.activations.fitting import Pieces
from latentbench.activations.resume import last_site, resumed_logits, resumes_at_the_end
from latentbench.activations.state_shards import Shards, StatesOrigin
from latentbench.activations.stored_states import ShardFile, Told, keep_states, token_bytes
from latentbench.activations.tokens import EvalTokens, real_mask
from latentbench.core.sites import Site, resumed_from
from latentbench.reconstruction.documents import (
    DocumentBatch,
    LiveDocumentStates,
    document_batches,
    in_pieces,
    limit_of,
)
from latentbench.store.state_cache import CacheMode
from latentbench.store.store import Store

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel


class StoredDocumentStates:
    """Reads them from shards, all of which are in the store."""

    def __init__(self, store: Store, shards: Shards, batches: Sequence[int], language_model: LanguageModel) -> None:
        """`batches` are the padded tokens of each batch of the domain."""
        self._store, self._shards, self._lm = store, shards, language_model
        self._ends = [0, *accumulate(batches)]
        self.keys = shards.keys
        """Of all shards, for whoever keeps them from being evicted."""

    def read(self, batch: DocumentBatch, sites: Collection[Site]) -> dict[Site, Tensor]:
        """See `DocumentStates`."""
        return {site: self._whole(site, batch)[batch.places].to(self._lm.device) for site in sites}

    def read_with_logits(self, batch: DocumentBatch, sites: Collection[Site]) -> tuple[dict[Site, Tensor], Tensor]:
        """See `DocumentStates`."""
        last = last_site(self._lm.model)
        states = self.read(batch, {*sites, last})
        return states, resumed_logits(self._lm.model, last, states[last], batch.ids, batch.real.long())

    def _whole(self, site: Site, batch: DocumentBatch) -> Tensor:
        """[documents, T, d] of the whole batch that `batch` is a part of, on the CPU."""
        number = self._shards.holding(batch.number)
        start, end = self._ends[batch.number : batch.number + 2]
        with ShardFile(self._store, self._shards.ref(site, number)) as shard:
            states = torch.empty(end - start, *shard.shape[1:], dtype=shard.dtype)
            shard.read_into(states, start - self._ends[self._shards.cuts[number].start])
        return states.view(-1, batch.ids.shape[1], states.shape[-1])


def states_to_store(model: nn.Module, read: Collection[Site], spliced: Collection[Site]) -> tuple[Site, ...] | None:
    """Which states a pass needs that reads SAEs at some sites and splices at some of them; None where storing is no use.

    It is none where the clean logits do not follow from the last block's output alone, so that the whole model must be run.
    """
    if not spliced:
        return tuple(sorted({*read}, key=str))
    if not resumes_at_the_end(model):
        return None
    entrances = (entrance for site in spliced for entrance in resumed_from(site))
    return tuple(sorted({*read, *spliced, *entrances, last_site(model)}, key=str))


def stored_document_states(
    store: Store,
    origin: StatesOrigin,
    language_model: LanguageModel,
    tokens: EvalTokens,
    sites: Sequence[Site],
    mode: CacheMode,
    told: Told = lambda done, total: None,
    forward_tokens: int = TOKENS_PER_FORWARD,
) -> StoredDocumentStates | None:
    """The states of all documents at `sites` from the store, made where they are missing; None where they are to be computed.

    `origin` names model and tokens; the batches are those of `Domain.run` with the same `forward_tokens`. Raises
    InvalidInput where they are to be stored `always` and may not take so much.
    """
    limit = limit_of(language_model.model, forward_tokens)
    batches = [count * longest for count, longest in batch_sizes(tokens.lengths.tolist(), limit)]
    origin = replace(origin, batches=limit)
    shards = Shards.of_batches(origin, sites, batches, token_bytes(language_model.model))
    computing = _Computing(language_model, tokens, limit, shards)
    kept = keep_states(store, shards, computing, mode, told)
    return StoredDocumentStates(store, shards, batches, language_model) if kept else None


class _Computing:
    """Computes the states of one shard after the other."""

    def __init__(self, language_model: LanguageModel, tokens: EvalTokens, limit: int, shards: Shards) -> None:
        self._live, self._shards = LiveDocumentStates(language_model.model), shards
        none = torch.zeros_like(real_mask(tokens.lengths, tokens.ids.shape[1]))
        self._batches = partial(document_batches, tokens, none, limit, language_model.device)
        self._pieces = Pieces(len(tokens.ids))

    @torch.no_grad()
    def __call__(self, number: int, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """See `stored_states.Computed`."""
        cut = self._shards.cuts[number]
        parts = [
            part
            for batch in islice(self._batches(), cut.start, cut.stop)
            for part in in_pieces(self._pieces, partial(self._flat, sites), batch)
        ]
        return {site: torch.cat([part[site] for part in parts]) for site in sites}

    def _flat(self, sites: Sequence[Site], batch: DocumentBatch) -> dict[Site, Tensor]:
        """[tokens, d] of all tokens, on the CPU."""
        return {site: states.flatten(0, 1).cpu() for site, states in self._live.read(batch, sites).items()}
