"""How hidden states are cut into artifacts, and what names these. Known before anything is computed.

What is cut are units that are always computed together: rows of training texts, or the batches in which the documents of an
evaluation domain are run. A shard holds consecutive units.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from latentbench.core.hashing import digest
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.store.state_cache import STATES
from latentbench.store.store import Ref, Store

VERSION = 1
"""Raised when the same units would give other stored states."""
SHARD_BYTES = 64 << 20
"""About so large is a shard: what a kill can lose, and what is held while it is made."""


@dataclass(frozen=True)
class StatesOrigin:
    """What determines the hidden states of some units, apart from the site."""

    model: Json
    """Identity of the language model, its data type included."""
    tokens: str
    """Key of the tokens."""
    batches: int | None = None
    """Most padded tokens of a batch of documents: it decides which documents are run together, and to which length they
    are padded, which changes the last bits. None for rows of training texts."""

    def made_from(self, site: Site, units: range) -> Json:
        """What the key of a shard is computed from."""
        where = {"site": site.plain(), "first": units.start, "rows": len(units)}
        batches = {} if self.batches is None else {"batches": self.batches}
        return {"model": self.model, "tokens": self.tokens, "version": VERSION, **batches, **where}


@dataclass(frozen=True)
class Shards:
    """The artifacts that hold the hidden states of some units at some sites."""

    origin: StatesOrigin
    sites: tuple[Site, ...]
    cuts: tuple[range, ...]
    """The units of each shard."""
    tokens: tuple[int, ...]
    """How many tokens each shard holds, padding included."""
    token_bytes: int
    """Of the hidden state of a token at one site."""

    @staticmethod
    def of_rows(origin: StatesOrigin, sites: Sequence[Site], rows: int, context: int, token_bytes: int) -> Shards:
        """Of rows of `context` tokens each; the last shard may have fewer rows than the others."""
        per_shard = max(1, SHARD_BYTES // (context * token_bytes))
        cuts = tuple(range(first, min(rows, first + per_shard)) for first in range(0, rows, per_shard))
        return Shards(origin, tuple(sites), cuts, tuple(len(cut) * context for cut in cuts), token_bytes)

    @staticmethod
    def of_batches(origin: StatesOrigin, sites: Sequence[Site], batches: Sequence[int], token_bytes: int) -> Shards:
        """Of batches with that many tokens each."""
        cuts, first, held = list[range](), 0, 0
        for number, tokens in enumerate(batches):
            if number > first and (held + tokens) * token_bytes > SHARD_BYTES:
                cuts.append(range(first, number))
                first, held = number, 0
            held += tokens
        cuts.append(range(first, len(batches)))
        sizes = tuple(sum(batches[cut.start : cut.stop]) for cut in cuts)
        return Shards(origin, tuple(sites), tuple(cuts), sizes, token_bytes)

    @property
    def bytes(self) -> int:
        """All of them together."""
        return sum(self.tokens) * self.token_bytes * len(self.sites)

    @cached_property
    def ends(self) -> list[int]:
        """How many tokens each shard and those before it hold."""
        return [*accumulate(self.tokens)]

    def holding(self, unit: int) -> int:
        """The number of the shard that holds a unit."""
        return bisect_right(self._firsts, unit) - 1

    @cached_property
    def _firsts(self) -> list[int]:
        return [cut.start for cut in self.cuts]

    def made_from(self, site: Site, number: int) -> Json:
        """What the key of a shard is computed from."""
        return self.origin.made_from(site, self.cuts[number])

    def ref(self, site: Site, number: int) -> Ref:
        """What the store calls a shard."""
        return STATES, digest(STATES, self.made_from(site, number))

    @cached_property
    def places(self) -> dict[Ref, tuple[Site, int]]:
        """All shards, each with its site and number, the sites of a number together. There may be thousands to name."""
        return {self.ref(site, n): (site, n) for n in range(len(self.cuts)) for site in self.sites}

    @property
    def keys(self) -> set[str]:
        """Of all shards, for whoever keeps them from being evicted."""
        return {key for _, key in self.places}

    def missing(self, store: Store) -> list[Ref]:
        """Those that are not in the store, unchecked."""
        return [ref for ref in self.places if not store.has(*ref)]

    def by_number(self, refs: Iterable[Ref]) -> dict[int, list[Ref]]:
        """Some shards by their numbers."""
        found: dict[int, list[Ref]] = {}
        for ref in refs:
            found.setdefault(self.places[ref][1], []).append(ref)
        return found

    def bytes_of(self, refs: Iterable[Ref]) -> int:
        """Bytes of some shards."""
        return sum(self.tokens[self.places[ref][1]] for ref in refs) * self.token_bytes
