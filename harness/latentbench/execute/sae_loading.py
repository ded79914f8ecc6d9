"""SAEs read back: those of a job, cached in memory, and those of finished cells with the SAEs they stand on.

The SAEs of a job are read when they are asked for and let go when they take too much memory. For those of a finished
cell neither texts nor model are needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.core.stage import Stage
from latentbench.plan.stages import SaeStages
from latentbench.sae import artifact
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.options.training import TRAINING_FILE
from latentbench.store.files import read_json
from latentbench.store.store import MANIFEST, Store

KEPT_BYTES = 2 << 30
"""What unused SAEs may take together: six of Gemma Scope's 16k dictionaries, all of a small model's."""


class SaeCache:
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
        # The one just read goes too if it alone is too large: its reader holds it, and `_alive` finds it as long.
        sizes = {name: bytes_of(kept) for name, kept in self._recent.items()}
        while self._recent and sum(sizes.values()) > self._kept:
            sizes.pop(self._recent.popitem(last=False)[0])
        return sae

    def at(self, made: Mapping[Site, SaeStages]) -> Mapping[Site, SparseAutoencoder]:
        """SAEs by site, read when they are looked up."""
        return _CachedBySite(made, self)


class _CachedBySite(Mapping[Site, SparseAutoencoder]):
    def __init__(self, made: Mapping[Site, SaeStages], cache: SaeCache) -> None:
        self._made, self._cache = made, cache

    def __getitem__(self, site: Site) -> SparseAutoencoder:
        return self._cache.get(self._made[site])

    def __iter__(self) -> Iterator[Site]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, site: object) -> bool:
        return site in self._made  # without reading it


def bytes_of(sae: SparseAutoencoder) -> int:
    """Bytes that an SAE's weights take in memory, and those of its bases."""
    own = sum(tensor.nbytes for tensor in chain(sae.parameters(), sae.buffers()))
    return own + sum(bytes_of(base) for base in sae.bases)


@dataclass(frozen=True)
class StoredSae:
    """An SAE and where it comes from."""

    section: Variant | LoadedSae
    sae: SparseAutoencoder
    bases: tuple[StoredSae, ...] = ()
    training: dict[str, Any] | None = None
    """The training record; None for what was not trained step by step."""


def load_stored(store: Store, key: str, section: Variant | LoadedSae, roots: Roots) -> StoredSae:
    """The SAE with the stage key `key`, made from `section`.

    Raises NotAvailable when it is not in the store or, for a loaded one, not at its source; RefusedFile when the files
    at its source have changed since.
    """
    if isinstance(section, LoadedSae):
        return StoredSae(section, _from_source(key, section, roots))
    found = store.get("sae", key)
    if found is None:
        raise NotAvailable(f"the SAE {key[:12]} is not in the store; run its spec again to make it")
    parents = _base_keys(found.folder, len(section.base_sections))
    pairs = zip(parents, section.base_sections, strict=True)
    bases = tuple(load_stored(store, parent, below, roots) for parent, below in pairs)
    sae = artifact.load(found.folder, tuple(base.sae for base in bases))
    trained = (found.folder / TRAINING_FILE).is_file()
    return StoredSae(section, sae, bases, artifact.load_training(found.folder) if trained else None)


def _from_source(key: str, section: LoadedSae, roots: Roots) -> SparseAutoencoder:
    if Stage("loaded_sae", "", section.load.identity(roots)).key != key:
        raise RefusedFile("the loaded SAE's files are not those that the record was made with")
    return section.load.load(roots)


def _base_keys(folder: Path, count: int) -> list[str]:
    """Stage keys of the bases: the last parents of the SAE's stage."""
    made_from = read_json(folder / MANIFEST)["made_from"]
    parents = [str(parent) for parent in made_from["parents"]]
    return parents[len(parents) - count :]
