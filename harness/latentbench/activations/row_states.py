"""Hidden states of the rows of training texts: computed when they are asked for, or read from the store.

The language model is what costs on real models, and every seed, variant and later spec asks it for the same states. So they
are stored (`stored_states`): whole rows of one set of training tokens at one site, in the model's own type.

Which rows stand together in a pass changes nothing of a row where the kernels of its device treat all rows alike, which
processors do: then a stream that reads gives the batches of one that computes, bit for bit. Elsewhere they agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.fitting import Pieces
from latentbench.activations.state_shards import Shards, StatesOrigin
from latentbench.activations.stored_states import ShardFile, Told, keep_states, token_bytes
from latentbench.activations.tokens import TrainTokens
from latentbench.core.sites import Site
from latentbench.store.state_cache import CacheMode
from latentbench.store.store import Store

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel

TOKENS_PER_FORWARD = 8192


class RowStates(Protocol):
    """Gives the hidden states of rows."""

    def read(self, rows: Tensor, counted: Tensor) -> dict[Site, Tensor]:
        """For each site the states [n, d], in the model's type, of the tokens `counted` [rows, T] of some rows [n] int64."""


class LiveRowStates:
    """Computes hidden states when they are asked for."""

    def __init__(self, language_model: LanguageModel, tokens: TrainTokens, sites: Sequence[Site]) -> None:
        self._lm, self._ids, self._sites = language_model, tokens.ids, tuple(sites)
        self._real = None if tokens.lengths is None else tokens.real
        # Rows of a pass; another number changes nothing beyond rounding.
        self._pieces = Pieces(TOKENS_PER_FORWARD // tokens.ids.shape[1])

    def read(self, rows: Tensor, counted: Tensor) -> dict[Site, Tensor]:
        """See `RowStates`."""
        kept = counted.to(self._lm.device)
        return {site: states[kept] for site, states in self.whole(rows, self._sites).items()}

    def stored(self, cut: range, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """For each site the states [rows, T, d] of consecutive rows, on the CPU."""
        parts = list(self._pieces.run(lambda rows: self._on_cpu(rows, sites), torch.tensor(cut)))
        return {site: torch.cat([part[site] for part in parts]) for site in sites}

    def _on_cpu(self, rows: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return {site: states.cpu() for site, states in self.whole(rows, sites).items()}

    @torch.no_grad()
    def whole(self, rows: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """For each site the states [rows, T, d] of all tokens, padding included."""
        mask = () if self._real is None else (self._real[rows].to(self._lm.device).long(),)
        return hidden_states(self._lm.model, sites, self._ids[rows].to(self._lm.device).long(), *mask)


class StoredRowStates:
    """Reads hidden states from shards, all of which are in the store."""

    def __init__(self, store: Store, shards: Shards, device: torch.device) -> None:
        """`device` is where the states are wanted."""
        self._store, self._shards, self._device = store, shards, device
        self.keys = shards.keys
        """Of all shards, for whoever keeps them from being evicted."""

    def read(self, rows: Tensor, counted: Tensor) -> dict[Site, Tensor]:
        """See `RowStates`."""
        return {site: self._whole(site, rows)[counted].to(self._device) for site in self._shards.sites}

    def _whole(self, site: Site, rows: Tensor) -> Tensor:
        """[rows, T, d] of all tokens, on the CPU."""
        holding = torch.tensor([self._shards.holding(row) for row in rows.tolist()], dtype=torch.int64)
        states: Tensor | None = None
        for number in sorted(set(holding.tolist())) or [0]:  # of no rows the shape is read all the same
            with ShardFile(self._store, self._shards.ref(site, number)) as shard:
                if states is None:
                    states = torch.empty(len(rows), *shard.shape[1:], dtype=shard.dtype)
                # A row at a time into its place: nothing is held twice.
                for place in (holding == number).nonzero()[:, 0].tolist():
                    shard.read_into(states[place], int(rows[place]) - self._shards.cuts[number].start)
        assert states is not None  # there is at least one shard
        return states


def stored_row_states(
    store: Store,
    origin: StatesOrigin,
    language_model: LanguageModel,
    tokens: TrainTokens,
    sites: Sequence[Site],
    mode: CacheMode,
    told: Told = lambda done, total: None,
) -> StoredRowStates | None:
    """The hidden states of all rows at `sites` from the store, made where they are missing; None where they are to be computed.

    Raises InvalidInput where they are to be stored `always` and may not take so much.
    """
    live = LiveRowStates(language_model, tokens, sites)
    rows, context = tokens.ids.shape
    shards = Shards.of_rows(origin, sites, rows, context, token_bytes(language_model.model))

    def computed(number: int, wanted: Sequence[Site]) -> dict[Site, Tensor]:
        return live.stored(shards.cuts[number], wanted)

    kept = keep_states(store, shards, computed, mode, told)
    return StoredRowStates(store, shards, language_model.device) if kept else None
