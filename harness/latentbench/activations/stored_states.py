"""Hidden states in the store: shards that are made once, by whoever needs them first, and read row by row.

A shard is an artifact like any other: whole or absent, checked when it is first read, made by one worker alone, and the first
to go where room is needed. A kill loses the shard that was being made. What is in it, and how it is computed, is its
maker's affair (`row_states` for training, `latentbench.reconstruction.document_states` for evaluation).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentbench.activations.model_config import facts_of
from latentbench.activations.state_shards import Shards
from latentbench.core.errors import CellFailed, InvalidInput, RefusedFile
from latentbench.core.sites import Site
from latentbench.core.text import plural
from latentbench.store.state_cache import STATES_QUOTA, CacheMode, make_room_for_states, states_limit
from latentbench.store.store import Ref, Store

FILE, TENSOR = "states.safetensors", "states"
PAYS = 10.0
"""How many times as long as storing them computing hidden states must take for `auto`: below, a disk is worth more."""
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""What safetensors calls the types that models compute in."""

Computed = Callable[[int, Sequence[Site]], dict[Site, Tensor]]
"""Number of a shard and some sites to the hidden states [units, …, d] or [tokens, d] of that shard, on the CPU."""
Told = Callable[[int, int], None]
"""Is given how many tokens are in the store so far, whoever put them there, and how many will be, padding included."""


def token_bytes(model: Any) -> int:
    """Bytes of the hidden state of one token, by a model's configuration: known before anything is computed."""
    try:
        width = facts_of(model.config.to_dict(), type(model).__name__).d_model
    except RefusedFile:  # it calls its width otherwise; nothing but the size of shards depends on it
        width = model.get_input_embeddings().weight.shape[1]
    return int(width * model.dtype.itemsize)


class ShardFile:
    """A shard that is open for reading."""

    # No longer than while it is read from: mapped files would count as the process's own memory, and thousands of shards would
    # need as many open files.
    def __init__(self, store: Store, ref: Ref) -> None:
        self._path = store.folder(*ref) / FILE

    def __enter__(self) -> ShardFile:
        try:
            self._file = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise CellFailed(
                f"stored hidden states cannot be read ({error.strerror}): {self._path.name} of {self._path.parent.name[:12]} "
                "was deleted while they were used; run it again"
            ) from None
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        header = json.loads(os.pread(self._file, length, 8))[TENSOR]
        self._start = 8 + length + header["data_offsets"][0]
        self.shape: tuple[int, ...] = tuple(header["shape"])
        self.dtype = _TYPES[header["dtype"]]
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read_into(self, place: Tensor, first: int) -> None:
        """Fills `place` [n, …], a contiguous tensor, with what stands from place `first` of the shard [m, …] on."""
        buffer = memoryview(place.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs lack it
        done, start = 0, self._start + first * math.prod(self.shape[1:]) * self.dtype.itemsize
        while done < len(buffer):
            if (read := os.preadv(self._file, [buffer[done:]], start + done)) <= 0:
                raise CellFailed(f"{self._path} ends before it should; run it again")
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

    def __init__(self, store: Store, shards: Shards, computed: Computed, told: Told) -> None:
        self._store, self._shards, self._computed, self._told = store, shards, computed, told

    def complete(self, missing: Sequence[Ref], must_pay: bool) -> bool:
        """Makes what is missing, shard by shard, beside others who do the same. False where `must_pay` and it does not:
        then nothing that was made here is left.
        """
        for number, refs in self._shards.by_number(missing).items():
            # What others are making is passed over, so that several workers share the work; it is waited for at the end.
            with self._store.taking(refs) as mine:
                if mine and not self._make(mine, number, must_pay):
                    return False
                must_pay = must_pay and not mine
            self._told(self._shards.ends[number], self._shards.ends[-1])
        self._store.share(self._shards.places, self._make_all)  # all of them: what is damaged is only found here
        return True

    def _make_all(self, refs: list[Ref]) -> None:
        for number, together in self._shards.by_number(refs).items():
            self._make(together, number, must_pay=False)

    def _make(self, refs: Sequence[Ref], number: int, must_pay: bool) -> bool:
        began = time.monotonic()
        wanted = {self._shards.places[ref][0]: ref for ref in refs}
        found = self._computed(number, tuple(wanted))
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


def keep_states(store: Store, shards: Shards, computed: Computed, mode: CacheMode, told: Told) -> bool:
    """Whether all shards are in the store, where they are made if they are missing and `mode` has it so.

    Raises InvalidInput where they are to be stored `always` and may not take so much.
    """
    if mode == "never":
        return False
    with store.using(shards.keys):
        missing = shards.missing(store)
        if missing and not make_room_for_states(store, shards.bytes_of(missing), shards.keys):
            if mode == "always":
                raise InvalidInput(_too_large(store, shards))
            return False
        return StatesWriter(store, shards, computed, told).complete(missing, must_pay=mode == "auto")


def _too_large(store: Store, shards: Shards) -> str:
    limit, wanted = states_limit(store), shards.bytes
    return (
        f"`cache: always` needs {wanted / 1e9:.1f} GB for the hidden states of {sum(shards.tokens):,} tokens at "
        f"{plural(len(shards.sites), 'site')}, and stored hidden states may take {limit / 1e9:.1f} GB; set {STATES_QUOTA} to "
        "a larger size, or take `cache: auto`"
    )
