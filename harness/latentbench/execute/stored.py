"""SAEs of finished cells, taken from the store again with what they stand on; neither texts nor model are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentbench.errors import NotAvailable, RefusedFile
from latentbench.plan.stage import Stage
from latentbench.sae import artifact
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.options import Variant
from latentbench.sae.options.loaded import LoadedSae
from latentbench.store.files import read_json
from latentbench.store.store import MANIFEST, Store
from latentbench_adapters.protocols import Roots


@dataclass(frozen=True)
class Stored:
    """An SAE and where it comes from."""

    section: Variant | LoadedSae
    sae: SparseAutoencoder
    bases: tuple[Stored, ...] = ()
    training: dict[str, Any] | None = None
    """The training record; None for what was not trained step by step."""


def load_stored(store: Store, key: str, section: Variant | LoadedSae, roots: Roots) -> Stored:
    """The SAE with the stage key `key`, made from `section`.

    Raises NotAvailable when it is not in the store or, for a loaded one, not at its source; RefusedFile when the files
    at its source have changed since.
    """
    if isinstance(section, LoadedSae):
        return Stored(section, _from_source(key, section, roots))
    found = store.get("sae", key)
    if found is None:
        raise NotAvailable(f"the SAE {key[:12]} is not in the store; run its spec again to make it")
    parents = _base_keys(found.folder, len(section.base_sections))
    pairs = zip(parents, section.base_sections, strict=True)
    bases = tuple(load_stored(store, parent, below, roots) for parent, below in pairs)
    sae = artifact.load(found.folder, tuple(base.sae for base in bases))
    trained = (found.folder / artifact.TRAINING).is_file()
    return Stored(section, sae, bases, artifact.load_training(found.folder) if trained else None)


def save_stored(stored: Stored, folder: Path) -> None:
    """Writes the SAE as a folder that `load: {adapter: latentbench}` reads, its bases as folders `base0`, … in it.

    A loaded base is written in sae-lens' format. Raises InvalidInput where that has no equivalent.
    """
    assert isinstance(stored.section, Variant)  # a loaded SAE has no options to save
    from latentbench_adapters.native import load_base

    for number, base in enumerate(stored.bases):
        _save_base(base, folder / f"base{number}")
    # Bases are referred to by digest, so by the digest of what will be read.
    bases = tuple(load_base(folder / f"base{number}") for number in range(len(stored.bases)))
    artifact.save(stored.sae, stored.section, stored.sae.d_in, folder, stored.training, bases)


def _save_base(base: Stored, folder: Path) -> None:
    if isinstance(base.section, Variant):
        save_stored(base, folder)
        return
    from latentbench_adapters.sae_lens.export import export

    export(base.sae, folder)


def _from_source(key: str, section: LoadedSae, roots: Roots) -> SparseAutoencoder:
    if Stage("loaded_sae", "", section.load.identity(roots)).key != key:
        raise RefusedFile("the loaded SAE's files are not those that the record was made with")
    return section.load.load(roots)


def _base_keys(folder: Path, count: int) -> list[str]:
    """Stage keys of the bases: the last parents of the SAE's stage."""
    made_from = read_json(folder / MANIFEST)["made_from"]
    parents = [str(parent) for parent in made_from["parents"]]
    return parents[len(parents) - count :]
