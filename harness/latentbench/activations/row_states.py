"""Hidden states of the rows of training texts: computed when they are asked for, or read from the store.

The language model is what costs on real models, and every seed, variant and later spec asks it for the same states. So they
are stored in shards: consecutive rows of one set of training tokens at one site, all tokens of them, in the model's own type,
named by what determines them (model, tokens, site, place). A shard is an artifact like any other: whole or absent, checked
when it is first read, made by one worker alone, and the first to go where room is needed. A kill loses the shard that was
being made.

Which rows stand together in a pass changes nothing of a row where the kernels of its device treat all rows alike, which
processors do: then a stream that reads gives the batches of one that computes, bit for bit. Elsewhere they agree to rounding.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.fitting import Pieces
from latentbench.activations.state_shards import Shards, StatesOrigin
from latentbench.activations.tokens import TrainTokens
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.sites import Site
from latentbench.core.text import plural
from latentbench.store.state_cache import STATES_QUOTA, CacheMode, make_room_for_states, states_limit
from latentbench.store.store import Ref, Store

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel

FILE, TENSOR = "states.safetensors", "states"
PAYS = 10.0
"""How many times as long as storing them computing hidden states must take for `auto`: below, a disk is worth more."""
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
        self.rows_at_once = max(1, TOKENS_PER_FORWARD // tokens.ids.shape[1])
        """Rows of a pass; another number changes nothing beyond rounding."""

    def read(self, rows: Tensor, counted: Tensor) -> dict[Site, Tensor]:
        """See `RowStates`."""
        kept = counted.to(self._lm.device)
        return {site: states[kept] for site, states in self.whole(rows).items()}

    @torch.no_grad()
    def whole(self, rows: Tensor) -> dict[Site, Tensor]:
        """For each site the states [rows, T, d] of all tokens, padding included."""
        mask = () if self._real is None else (self._real[rows].to(self._lm.device).long(),)
        return hidden_states(self._lm.model, self._sites, self._ids[rows].to(self._lm.device).long(), *mask)


class StoredRowStates:
    """Reads hidden states from shards, all of which are in the store."""

    def __init__(self, store: Store, shards: Shards, like: Tensor) -> None:
        """`like` [1, T, d]: the states of a row, which show shape, type and device."""
        self._store, self._shards, self._like = store, shards, like

    @property
    def keys(self) -> set[str]:
        """Of all shards, for whoever keeps them from being evicted."""
        return {key for _, key in self._shards.places}

    def read(self, rows: Tensor, counted: Tensor) -> dict[Site, Tensor]:
        """See `RowStates`."""
        return {site: self._whole(site, rows)[counted].to(self._like.device) for site in self._shards.sites}

    def _whole(self, site: Site, rows: Tensor) -> Tensor:
        """[rows, T, d] of all tokens, on the CPU."""
        states = torch.empty(len(rows), *self._like.shape[1:], dtype=self._like.dtype)
        numbers = rows // self._shards.per_shard
        # A row at a time into its place, from a file that is open no longer than that: mapped files would count as the
        # process's own memory, and thousands of shards would need as many open files.
        for number in sorted(set(numbers.tolist())):
            with _ShardFile(self._store.folder(*self._shards.ref(site, number)) / FILE) as shard:
                for place in (numbers == number).nonzero()[:, 0].tolist():
                    shard.read_into(states[place], int(rows[place]) - number * self._shards.per_shard)
        return states


class _ShardFile:
    """A safetensors file with one tensor, of which single rows are read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _ShardFile:
        try:
            self._file = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise CellFailed(
                f"stored hidden states cannot be read ({error.strerror}): {self._path.name} of {self._path.parent.name[:12]} "
                "was deleted while they were used; run it again"
            ) from None
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        start, _ = json.loads(os.pread(self._file, length, 8))[TENSOR]["data_offsets"]
        self._start = 8 + length + start
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read_into(self, row: Tensor, number: int) -> None:
        """Fills `row`, a contiguous tensor, with the row of that number."""
        buffer = memoryview(row.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs lack it
        done, place = 0, self._start + number * len(buffer)
        while done < len(buffer):
            if (read := os.preadv(self._file, [buffer[done:]], place + done)) <= 0:
                raise CellFailed(f"{self._path} ends before its row {number}; run it again")
            done += read


class _DoesNotPay(Exception):  # an answer, not an error
    """Storing takes too long for what it saves."""


def _write(states: Tensor, path: Path) -> None:
    """Until it is on the disk, so that the time this takes is that of the disk."""
    save_file({TENSOR: states}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


class StatesWriter:
    """Sees to it that all shards are in the store, whoever makes them."""

    def __init__(self, store: Store, shards: Shards, live: LiveRowStates, told: Callable[[int], None]) -> None:
        """`told` is given the number of rows that are there so far, whoever made them."""
        self._store, self._shards, self._live, self._told = store, shards, live, told
        self._pieces = Pieces(live.rows_at_once)

    def complete(self, must_pay: bool) -> bool:
        """Makes what is missing, shard by shard, beside others who do the same. False where `must_pay` and it does not:
        then nothing that was made here is left.
        """
        for number, refs in self._shards.by_number(self._shards.missing(self._store)).items():
            # What others are making is passed over, so that several workers share the work; it is waited for at the end.
            with self._store.taking(refs) as mine:
                if mine and not self._make(mine, number, must_pay):
                    return False
                must_pay = must_pay and not mine
            self._told(self._shards.of(number).stop)
        self._store.share(self._shards.places, self._make_all)  # all of them: what is damaged is only found here
        return True

    def _make_all(self, refs: list[Ref]) -> None:
        for number, together in self._shards.by_number(refs).items():
            self._make(together, number, must_pay=False)

    def _make(self, refs: Sequence[Ref], number: int, must_pay: bool) -> bool:
        began = time.monotonic()
        wanted, found = {self._shards.places[ref][0]: ref for ref in refs}, self._computed(number)
        least = (time.monotonic() - began) / PAYS if must_pay else math.inf
        try:
            for site, ref in wanted.items():
                with self._store.writing(*ref, self._shards.made_from(site, number)) as folder:
                    began = time.monotonic()
                    _write(found[site], folder / FILE)
                    # Said before the draft becomes an artifact: what does not pay leaves nothing behind.
                    if len(wanted) * (time.monotonic() - began) > least:
                        raise _DoesNotPay
        except _DoesNotPay:
            return False
        return True

    def _computed(self, number: int) -> dict[Site, Tensor]:
        """States [rows, T, d] of a shard at every site, on the CPU."""
        parts = list(self._pieces.run(self._on_cpu, torch.tensor(self._shards.of(number))))
        return {site: torch.cat([part[site] for part in parts]) for site in self._shards.sites}

    def _on_cpu(self, rows: Tensor) -> dict[Site, Tensor]:
        return {site: states.cpu() for site, states in self._live.whole(rows).items()}


def stored_row_states(
    store: Store,
    origin: StatesOrigin,
    language_model: LanguageModel,
    tokens: TrainTokens,
    sites: Sequence[Site],
    mode: CacheMode,
    told: Callable[[int], None] = lambda rows: None,
) -> StoredRowStates | None:
    """The hidden states of all rows at `sites` from the store, made where they are missing; None where they are to be computed.

    `told` is given the number of rows that are in the store, as they come.
    Raises InvalidInput where they are to be stored `always` and may not take so much.
    """
    if mode == "never":
        return None
    live = LiveRowStates(language_model, tokens, sites)
    like, *others = live.whole(torch.tensor([0])).values()
    if any((one.shape, one.dtype) != (like.shape, like.dtype) for one in others):  # no rows of equal size
        return None
    shards = Shards(origin, tuple(sites), len(tokens.ids), like.nbytes)
    stored = StoredRowStates(store, shards, like)
    with store.using(stored.keys):
        if not make_room_for_states(store, shards.bytes_of(shards.missing(store)), stored.keys):
            if mode == "always":
                raise InvalidInput(_too_large(store, shards))
            return None
        complete = StatesWriter(store, shards, live, told).complete(must_pay=mode == "auto")
    return stored if complete else None


def _too_large(store: Store, shards: Shards) -> str:
    limit, wanted = states_limit(store), shards.bytes
    return (
        f"`cache: always` needs {wanted / 1e9:.1f} GB for the hidden states of {shards.rows:,} rows at {plural(len(shards.sites), 'site')}, "
        f"and stored hidden states may take {limit / 1e9:.1f} GB; set {STATES_QUOTA} to a larger size, or take `cache: auto`"
    )
