"""`load: {adapter: sae_lens, …}`: any SAE of sae-lens' registry, or one that sae-lens saved to disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from latentbench.core.errors import RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.plugins import package_version
from latentbench.core.sites import PAIR
from latentbench.core.spec_model import Json
from latentbench.core.untrusted_files import config_object, optional_positive, read_json
from latentbench.sae.sources.base import (
    SaeFacts,
    SaeSource,
    digests,
    mlp_between,
    model_of,
    other_output,
    sae_folder,
    site_of,
)

if TYPE_CHECKING:
    from latentbench.sae.autoencoder import SparseAutoencoder

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_IN_ID = re.compile(r"(?:^|/)layer_(\d+)(?:/|$)")


class SaeLensSource(SaeSource):
    """A registered release and id, or a folder with sae_weights.safetensors and cfg.json."""

    adapter: Literal["sae_lens"] = "sae_lens"
    release: Annotated[str, Field(max_length=200)] | None = None
    """Release in sae-lens' registry, e.g. `gemma-scope-2b-pt-res-canonical`."""
    id: Annotated[str, Field(max_length=200)] | None = None
    """SAE within the release, e.g. `layer_12/width_16k/canonical`."""
    path: Annotated[str, Field(max_length=500)] | None = None
    """Folder that sae-lens saved, instead of release and id."""

    @model_validator(mode="after")
    def _one_way(self) -> Any:
        if (self.path is None) == (self.release is None or self.id is None) or (
            self.path and (self.release or self.id)
        ):
            raise ValueError("give either `release` and `id`, or `path`")
        return self

    def identity(self, roots: Roots) -> Json:
        if self.path is None:
            return {"release": self.release, "id": self.id, "sae_lens": package_version("sae-lens")}
        folder = self.folder(roots)
        return digests(folder, (WEIGHTS, CONFIG))

    def folder(self, roots: Roots) -> Path:
        """The folder meant by `path`. Raises NotAvailable when it does not hold a saved SAE."""
        return sae_folder(roots, self.path or "", "an SAE saved by sae-lens", (WEIGHTS, CONFIG))

    def facts(self, roots: Roots) -> SaeFacts:
        """From cfg.json; of a registered SAE only what its id says, for the registry is not read without torch."""
        if self.path is None:
            found = _IN_ID.search(str(self.id))
            return SaeFacts(layer=int(found[1])) if found else SaeFacts(None, None, *site_of(str(self.id)))
        where = f"{self.path}/{CONFIG}"
        config = config_object(read_json(self.folder(roots) / CONFIG), where)
        metadata = config.get("metadata")
        stated = metadata if isinstance(metadata, dict) else config  # of older versions
        d_in, width = (optional_positive(config, key, where) for key in ("d_in", "d_sae"))
        if "transcoder" in str(config.get("architecture")) and (block := mlp_between(stated.get)) is not None:
            return SaeFacts(d_in, width, block, PAIR, model_of(stated, "model_name"))
        if other := other_output(str(config.get("architecture")), stated.get("hook_name"), stated.get("hook_name_out")):
            raise RefusedFile(f"{where}: {other}")
        return SaeFacts(d_in, width, *site_of(str(stated.get("hook_name") or "")), model_of(stated, "model_name"))

    def load(self, roots: Roots) -> SparseAutoencoder:
        from latentbench_adapters.sae_lens.saes import from_disk, from_registry

        if self.path is not None:
            return from_disk(self.folder(roots))
        return from_registry(str(self.release), str(self.id))
