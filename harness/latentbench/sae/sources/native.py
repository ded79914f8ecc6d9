"""`load: {adapter: latentbench, path: …}`: an SAE that latentbench wrote, with the SAEs it stands on below `base0/`, ….

`latentbench export --to latentbench` writes such a folder: sae.safetensors and sae.json, training.json where it was
trained, and export.json, which says of which model, layer and cell it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from latentbench.core.errors import RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.core.untrusted_files import config_object, optional_positive, positive, read_json, tensor_shapes
from latentbench.sae.sources.base import (
    SaeFacts,
    SaeSource,
    digests,
    model_of,
    sae_folder,
    sae_lens_format,
    site_of,
)

if TYPE_CHECKING:
    from latentbench.sae.autoencoder import SparseAutoencoder

WEIGHTS, HEADER, ORIGIN = "sae.safetensors", "sae.json", "export.json"
_MAX_DEPTH = 8


class NativeSource(SaeSource):
    """A folder that `latentbench export --to latentbench` wrote."""

    adapter: Literal["latentbench"] = "latentbench"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """The folder that holds sae.json and sae.safetensors."""

    def identity(self, roots: Roots) -> Json:
        folder = self.folder(roots)
        return digests(folder, (str(file.relative_to(folder)) for file in _files(folder)))

    def folder(self, roots: Roots) -> Path:
        """The folder meant by `path`. Raises NotAvailable, RefusedFile for bases that are not there, ValueError for
        links that lead out of the project."""
        folder = sae_folder(roots, self.path, "an SAE written by latentbench", (WEIGHTS, HEADER))
        for holds in {file.parent for file in _files(folder)}:
            roots.check_links(holds)
        return folder

    def facts(self, roots: Roots) -> SaeFacts:
        folder = self.folder(roots)
        header = config_object(read_json(folder / HEADER), f"{self.path}/{HEADER}")
        options = config_object(header.get("options"), f"{self.path}/{HEADER}: options")
        d_in = positive(header, "d_in", f"{self.path}/{HEADER}")
        width = None if header.get("bases") else optional_positive(options, "width", f"{self.path}/{HEADER}")
        origin = _origin(folder)
        return SaeFacts(d_in, width, *site_of(str(origin.get("hook_name") or "")), model_of(origin, "model_name"))

    def load(self, roots: Roots) -> SparseAutoencoder:
        """The SAE with its bases. Raises RefusedFile when weights, header and bases do not fit together."""
        return load_folder(self.folder(roots))


def load_folder(folder: Path, depth: int = 0) -> SparseAutoencoder:
    """The SAE in `folder`, on the CPU, with the bases that stand below it. Raises RefusedFile."""
    from latentbench.sae import artifact

    if depth > _MAX_DEPTH:
        raise RefusedFile(f"{folder.name}: more than {_MAX_DEPTH} SAEs on top of each other")
    _check_sizes(folder)
    return artifact.load(folder, tuple(load_base(base, depth + 1) for base in base_folders(folder)))


def base_folders(folder: Path) -> list[Path]:
    """The folders of the bases, in order; as many as sae.json counts. Raises RefusedFile."""
    header = config_object(read_json(folder / HEADER), str(folder / HEADER))
    bases = header.get("bases", [])
    if not isinstance(bases, list) or len(bases) > 64:
        raise RefusedFile(f"{folder / HEADER}: bases must be a list of digests")
    found = [folder / f"base{number}" for number in range(len(bases))]
    for base in found:
        if base.is_symlink() or not base.is_dir():
            raise RefusedFile(f"{folder / HEADER} counts {len(bases)} bases, but there is no folder {base.name}")
    return found


def load_base(folder: Path, depth: int = 1) -> SparseAutoencoder:
    """The base SAE in `folder`, written by latentbench or in sae-lens' format. Raises RefusedFile."""
    return load_folder(folder, depth) if (folder / HEADER).is_file() else sae_lens_format().load(folder)


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The files that determine the weights, bases included."""
    native = (folder / HEADER).is_file()
    names = (WEIGHTS, HEADER) if native else sae_lens_format().files
    yield from (folder / name for name in names if (folder / name).is_file())
    if native and depth <= _MAX_DEPTH:
        for base in base_folders(folder):
            yield from _files(base, depth + 1)


def _origin(folder: Path) -> dict[str, Json]:
    """What export.json states, or nothing: the file is for people and may be absent."""
    if not (folder / ORIGIN).is_file():
        return {}
    return config_object(read_json(folder / ORIGIN), str(folder / ORIGIN))


def _check_sizes(folder: Path) -> None:
    """Raises RefusedFile when sae.json promises more than the weights hold, before anything of that size is made."""
    header = config_object(read_json(folder / HEADER), str(folder / HEADER))
    options = header.get("options")
    sizes = {"d_in": header.get("d_in"), **(options if isinstance(options, dict) else {})}
    if isinstance(options, dict) and options.get("variant") == "identity":
        return  # it has no weights
    largest = max((size for shape in tensor_shapes(folder / WEIGHTS).values() for size in shape), default=0)
    for name, value in sizes.items():
        if (name == "d_in" or name.endswith("width")) and isinstance(value, int) and value > largest:
            raise RefusedFile(f"{folder / HEADER}: {name} = {value}, but no tensor of {WEIGHTS} is that large")
