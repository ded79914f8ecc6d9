"""How the hidden states of some rows are cut into artifacts, and what names these. Known before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from latentbench.core.hashing import digest
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.store.state_cache import STATES
from latentbench.store.store import Ref, Store

VERSION = 1
"""Raised when the same rows would give other stored states."""
SHARD_BYTES = 64 << 20
"""About so large is a shard: what a kill can lose, and what is held while it is made."""


@dataclass(frozen=True)
class StatesOrigin:
    """What determines the hidden states of some rows, apart from the site."""

    model: Json
    """Identity of the language model, its data type included."""
    tokens: str
    """Key of the training tokens."""

    def made_from(self, site: Site, first: int, rows: int) -> Json:
        """What the key of a shard is computed from."""
        where = {"site": site.plain(), "first": first, "rows": rows}
        return {"model": self.model, "tokens": self.tokens, "version": VERSION, **where}


@dataclass(frozen=True)
class Shards:
    """How the hidden states of some rows are cut into artifacts, and which these are."""

    origin: StatesOrigin
    sites: tuple[Site, ...]
    rows: int
    row_bytes: int
    """Of one row at one site."""

    @cached_property
    def per_shard(self) -> int:
        """Rows of a shard; the last one may have fewer."""
        return max(1, SHARD_BYTES // self.row_bytes)

    @property
    def count(self) -> int:
        """Number of shards of each site."""
        return -(-self.rows // self.per_shard)

    @property
    def bytes(self) -> int:
        """All of them together."""
        return self.rows * self.row_bytes * len(self.sites)

    def of(self, number: int) -> range:
        """The rows of a shard."""
        return range(number * self.per_shard, min(self.rows, (number + 1) * self.per_shard))

    def made_from(self, site: Site, number: int) -> Json:
        """What the key of a shard is computed from."""
        return self.origin.made_from(site, number * self.per_shard, len(self.of(number)))

    def ref(self, site: Site, number: int) -> Ref:
        """What the store calls a shard."""
        return STATES, digest(STATES, self.made_from(site, number))

    @cached_property
    def places(self) -> dict[Ref, tuple[Site, int]]:
        """All shards, each with its site and number, the sites of a number together. There may be thousands to name."""
        return {self.ref(site, n): (site, n) for n in range(self.count) for site in self.sites}

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
        return sum(len(self.of(self.places[ref][1])) for ref in refs) * self.row_bytes
