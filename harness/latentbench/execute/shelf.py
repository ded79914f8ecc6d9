"""SAEs of a job, read when they are asked for and let go when they take too much memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from weakref import WeakValueDictionary

from latentbench.activations.site import Site
from latentbench.plan.stage import SaeStages
from latentbench.sae.base import SparseAutoencoder

KEPT_BYTES = 2 << 30
"""What unused SAEs may take together: six of Gemma Scope's 16k dictionaries, all of a small model's."""


class Shelf:
    """SAEs by their stage, each in memory once at most.

    Those that somebody holds stay, whatever their size; beyond them the most recently used are kept up to `kept` bytes.
    So the peak is `kept`, what is held, and the one being read. Work on many sites (feature flow through 26 layers of
    a large model) looks SAEs up when it needs them and holds only those of the layer it is at.
    """

    def __init__(self, load: Callable[[SaeStages], SparseAutoencoder], kept: int = KEPT_BYTES) -> None:
        self._load, self._kept = load, kept
        self._alive: WeakValueDictionary[str, SparseAutoencoder] = WeakValueDictionary()
        self._recent: OrderedDict[str, SparseAutoencoder] = OrderedDict()

    def get(self, made: SaeStages) -> SparseAutoencoder:
        """The SAE, read unless it is in memory. Raises what reading it raises."""
        key = made.stage.key
        sae = self._alive.get(key)
        if sae is None:
            sae = self._alive[key] = self._load(made)
        self._recent[key] = sae
        self._recent.move_to_end(key)
        sizes = {name: bytes_of(kept) for name, kept in self._recent.items()}
        while self._recent and sum(sizes.values()) > self._kept:
            sizes.pop(self._recent.popitem(last=False)[0])
        return sae

    def at(self, made: Mapping[Site, SaeStages]) -> Mapping[Site, SparseAutoencoder]:
        """SAEs by site, read when they are looked up."""
        return _AtSites(made, self)


class _AtSites(Mapping[Site, SparseAutoencoder]):
    def __init__(self, made: Mapping[Site, SaeStages], shelf: Shelf) -> None:
        self._made, self._shelf = made, shelf

    def __getitem__(self, site: Site) -> SparseAutoencoder:
        return self._shelf.get(self._made[site])

    def __iter__(self) -> Iterator[Site]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, site: object) -> bool:
        return site in self._made  # without reading it


def bytes_of(sae: SparseAutoencoder) -> int:
    """What an SAE's weights take in memory, and those of its bases."""
    own = sum(tensor.nbytes for tensor in chain(sae.parameters(), sae.buffers()))
    return own + sum(bytes_of(base) for base in sae.bases)
