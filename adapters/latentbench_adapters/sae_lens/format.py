"""sae-lens' format as a plug-in: what `latentbench export` writes, and what loaded SAEs below others are kept in.

Importing this module imports neither torch nor sae-lens: `plan` asks it for the names of files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentbench_adapters.sae_lens.source import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from latentbench.sae.autoencoder import SparseAutoencoder
    from latentbench.sae.sources.base import ExportedSae, SaeOrigin


class SaeLensFormat:
    """Folders that `sae_lens.SAE.load_from_disk` reads; a `latentbench.sae.sources.base.SaeFormat`."""

    files = (WEIGHTS, CONFIG)

    def save(self, sae: SparseAutoencoder, folder: Path, origin: SaeOrigin | None = None) -> ExportedSae:
        """Writes `sae` to the new `folder`; see `export`."""
        from latentbench_adapters.sae_lens.export import export

        return export(sae, folder, origin)

    def load(self, folder: Path) -> SparseAutoencoder:
        """The SAE in `folder`; see `from_disk`."""
        from latentbench_adapters.sae_lens.saes import from_disk

        return from_disk(folder)
