"""`load: {adapter: sae_lens, …}`: any SAE of sae-lens' registry, or one that sae-lens saved to disk."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from adapters.protocols import Roots, SaeSource
from harness.canonical import file_digest
from harness.errors import NotAvailable
from harness.section import Json

if TYPE_CHECKING:
    from harness.sae.base import SparseAutoencoder

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


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
            return {"release": self.release, "id": self.id, "sae_lens": version("sae-lens")}
        folder = self.folder(roots)
        return {name: _digest_of(folder / name) for name in (WEIGHTS, CONFIG)}

    def folder(self, roots: Roots) -> Path:
        """The folder meant by `path`. Raises NotAvailable when it does not hold a saved SAE."""
        folder = roots.resolve(self.path or "")
        missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
        if missing:
            raise NotAvailable(f"{self.path} is not an SAE saved by sae-lens: it holds no {' and no '.join(missing)}")
        return folder

    def load(self, roots: Roots) -> SparseAutoencoder:
        from adapters.sae_lens.loaded import from_disk, from_registry

        if self.path is not None:
            return from_disk(self.folder(roots))
        return from_registry(str(self.release), str(self.id))


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, modified: int) -> str:
    return file_digest(path)
