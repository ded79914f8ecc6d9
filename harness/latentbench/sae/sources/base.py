"""Ways in and out for trained SAEs: what a plug-in implements, and what all of them share.

In: `SaeSource` is what a spec names under `load:`; beside it stand folders, the identity of files, and what configurations
state. Out: `SaeFormat` is a format of another library that SAEs are written in and read back from.

Nothing here imports torch: `validate` and `plan` read every SAE a spec names.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from latentbench.core.errors import NotAvailable
from latentbench.core.known_files import known_digest
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugin
from latentbench.core.sites import PAIR
from latentbench.core.spec_model import Json, SpecModel

if TYPE_CHECKING:
    from latentbench.core.sites import Point, Site
    from latentbench.sae.autoencoder import SparseAutoencoder

# What files call a place: TransformerLens' hook points, and paths of modules in transformers.
_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.(?:hook_)?(\w+)")
_MODULE = re.compile(r"(?:^|[._])(?:layers|h|blocks)[._](\d+)(?:\.(\w+))?$")
_POINTS: dict[str | None, Point] = {
    None: "resid_post",
    "resid_pre": "resid_pre",
    "resid_post": "resid_post",
    "mlp_out": "mlp_out",
    "attn_out": "attn_out",
    "mlp": "mlp_out",
    "attn": "attn_out",
    "attention": "attn_out",
    "self_attn": "attn_out",
}


@dataclass(frozen=True)
class SaeFacts:
    """What an SAE's files state about it, read without loading a weight; None where they do not say."""

    d_in: int | None = None
    """Dimensions of the hidden states it reads."""
    width: int | None = None
    """Dictionary width: number of latents."""
    layer: int | None = None
    """Number of the decoder block it was trained on, counted from 0."""
    point: Point | None = None
    """Which hidden state of the block; None where only the block is stated."""
    model: str | None = None
    """Name of the language model it was trained on, as its files have it: `google/gemma-2-2b` or `gemma-2-2b`."""


class SaeSource(SpecModel):
    """A trained SAE that can be loaded from somewhere."""

    adapter: str

    @abstractmethod
    def identity(self, roots: Roots) -> Json:
        """What determines the weights: digests of files, or names and revision. Never a local path."""

    def facts(self, roots: Roots) -> SaeFacts | None:
        """What its configuration states, read without torch; None where nothing is known before it is loaded.

        Raises RefusedFile or NotAvailable like `identity`.
        """
        return None

    @abstractmethod
    def load(self, roots: Roots) -> SparseAutoencoder:
        """The SAE on the CPU, reading raw hidden states."""


@dataclass(frozen=True)
class SaeOrigin:
    """Where an SAE comes from; what is not known stays None and is not written."""

    model: str | None = None
    """Name of the language model, e.g. `EleutherAI/pythia-70m`."""
    site: Site | None = None
    """Where its hidden states are read."""
    hook_module: str | None = None
    """Path of the module in transformers, e.g. `model.layers.3`."""
    context: int | None = None
    """Tokens per sequence it was trained on."""
    cell: str | None = None
    """Id of the record's cell."""

    def fields(self) -> dict[str, str | int]:
        """What is known, in the words of sae-lens' metadata where it has some: other tools look for these."""
        found = {
            "model_name": self.model,
            "hook_name": hook_name(self.site) if self.site else None,
            "hf_hook_name": self.hook_module,
            "context_size": self.context,
            "latentbench_version": version("latentbench"),
            "latentbench_cell": self.cell,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class ExportedSae:
    """What was written in another library's format."""

    architecture: str
    """The class that the library will load it as."""
    equivalence: str
    """`exact` or `exact at k=…`, after `registered class …, ` where the library needs one of ours."""
    needs_import: str | None
    """The module to import before the library can load it, or None."""


class SaeFormat(Protocol):
    """A format of another library for SAEs; found by `plugin("exports", name)`, whose value takes no arguments."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that determine the weights, in a folder of this format."""

    def save(self, sae: SparseAutoencoder, folder: Path, origin: SaeOrigin | None = None) -> ExportedSae:
        """Writes `sae` to the new `folder`, whole or not at all.

        Raises InvalidInput when the folder exists or the format has no equivalent of the SAE, StoreError when the disk
        refuses.
        """

    def load(self, folder: Path) -> SparseAutoencoder:
        """The SAE in `folder`, on the CPU. Raises RefusedFile when the files do not fit together."""


def sae_lens_format() -> SaeFormat:
    """sae-lens' format, in which SAEs of sources are written. Raises NotAvailable where no package provides it."""
    made: SaeFormat = plugin("exports", "sae_lens")()
    return made


def sae_folder(roots: Roots, path: str, kind: str, needed: Iterable[str]) -> Path:
    """The folder meant by `path`. Raises NotAvailable when it does not hold the files of a `kind`, OutsideProject for
    links that lead out of the project."""
    folder = roots.resolve(path)
    if not folder.is_dir():
        raise NotAvailable(f"{path} is not a folder; give the folder that holds the files of {kind}")
    roots.check_links(folder)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise NotAvailable(f"{path} is not {kind}: it holds no {' and no '.join(missing)}")
    return folder


def digests(folder: Path, names: Iterable[str]) -> dict[str, Json]:
    """sha256 of every named file, computed anew only when its size or time of change differs."""
    return {name: known_digest(folder / name) for name in names}


def hook_name(site: Site) -> str:
    """TransformerLens' name of a site, e.g. `blocks.3.hook_resid_post`; `site_of` reads it back."""
    return f"blocks.{site.index}.mlp.hook_in" if site.point == PAIR else f"blocks.{site.index}.hook_{site.point}"


def site_of(hook: str) -> tuple[int | None, Point | None]:
    """Decoder block and point meant by `blocks.3.hook_resid_post`, `layers.3` or `model.layers.3.mlp`; None: unknown."""
    if given := re.fullmatch(r"blocks\.(\d+)\.mlp\.hook_in", hook):
        return int(given[1]), PAIR
    found = _TRANSFORMER_LENS.match(hook) or _MODULE.search(hook)
    return (int(found[1]), _POINTS.get(found[2])) if found else (None, None)


def model_of(config: dict[str, Json], *keys: str) -> str | None:
    """The name of the language model under the first of `keys` that has one; None for paths: they mean nothing here."""
    found = next((value for key in keys if isinstance(value := config.get(key), str) and value), None)
    # Cut: the name is shown to people and compared, and the file may hold anything.
    return None if found is None or found.startswith(("/", ".", "~")) or "\\" in found else found[:300]


# What a transcoder reads and predicts: Gemma Scope 2's modules, and the hooks of TransformerLens. Neither `mlp.output`, behind
# which some models have a norm, nor `ln2.hook_normalized`, which is what a norm makes before its own weights.
_GIVEN_TO_MLP = re.compile(r"model\.layers\.(\d+)\.pre_feedforward_layernorm\.output|blocks\.(\d+)\.mlp\.hook_in")
_ADDED_BY_MLP = re.compile(r"model\.layers\.(\d+)\.post_feedforward_layernorm\.output|blocks\.(\d+)\.hook_mlp_out")
_ENDS = (("hf_hook_name", "hf_hook_name_out"), ("hook_name", "hook_name_out"))
"""What sae-lens' metadata call the two; the first pair that is stated counts."""


def mlp_between(stated: Callable[[str], Json]) -> int | None:
    """Number of the block whose MLP is given what a transcoder reads and adds what it predicts; None for other places.

    `stated(name)` gives what its metadata have under a name, or None.
    """
    reads, writes = next((ends for pair in _ENDS if all(ends := tuple(map(stated, pair)))), (None, None))
    ends = _GIVEN_TO_MLP.fullmatch(str(reads)), _ADDED_BY_MLP.fullmatch(str(writes))
    blocks = [int(found[1] or found[2]) for found in ends if found]
    return blocks[0] if len(blocks) == 2 and blocks[0] == blocks[1] else None


def other_output(architecture: str, reads: Json, writes: Json) -> str | None:
    """Why this is no SAE but a model of another hidden state than it reads; None where it is an SAE."""
    if "transcoder" in architecture:
        return f"{architecture[:60]!r} is a transcoder: it predicts another hidden state than it reads"
    if reads and writes and reads != writes:
        return f"this is a transcoder: it reads {str(reads)[:80]} and predicts {str(writes)[:80]}"
    return None
