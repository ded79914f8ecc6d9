"""`load: {adapter: sparsify, path: …}`: an SAE that EleutherAI's sparsify saved (cfg.json and sae.safetensors).

What the files mean: z = TopK(ReLU(encoder.weight (x − b_dec) + encoder.bias)), x̂ = z W_dec + b_dec, with encoder.weight
and W_dec both [width, d_in]; width is `num_latents`, or d_in · `expansion_factor` where that is zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from latentbench.core.errors import RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.core.untrusted_files import config_object, optional_positive, positive, read_json
from latentbench.sae.sources.base import (
    SaeFacts,
    SaeSource,
    digests,
    sae_folder,
    site_of,
)

if TYPE_CHECKING:
    from latentbench.sae.autoencoder import SparseAutoencoder

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
_OTHER_MODELS = {
    "transcode": "a transcoder: it predicts another hidden state than it reads",
    "skip_connection": "a transcoder with a linear skip connection",
    "signed": "of the old signed kind, whose latents may be negative",
    "normalize_io": "of a kind that normalises its input at run time",
}


class SparsifySource(SaeSource):
    """A folder that EleutherAI's sparsify saved for one hook point: cfg.json and sae.safetensors."""

    adapter: Literal["sparsify"] = "sparsify"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """The folder of one hook point, e.g. `saes/layers.10`; its name says which layer."""

    def identity(self, roots: Roots) -> Json:
        return digests(self.folder(roots), (WEIGHTS, CONFIG))

    def folder(self, roots: Roots) -> Path:
        """The folder meant by `path`. Raises NotAvailable."""
        return sae_folder(roots, self.path, "an SAE saved by sparsify", (WEIGHTS, CONFIG))

    def facts(self, roots: Roots) -> SaeFacts:
        d_in, width, _ = self.sizes(roots)
        return SaeFacts(d_in, width, *site_of(self.folder(roots).name))

    def sizes(self, roots: Roots) -> tuple[int, int, int]:
        """(d_in, width, k) of cfg.json. Raises RefusedFile for what is not a TopK SAE."""
        where = f"{self.path}/{CONFIG}"
        config = config_object(read_json(self.folder(roots) / CONFIG), where)
        _check_kind(config, where)
        d_in, k = positive(config, "d_in", where), positive(config, "k", where)
        width = optional_positive({"num_latents": config.get("num_latents") or None}, "num_latents", where)
        width = width or d_in * positive(config, "expansion_factor", where)
        if k > width:
            raise RefusedFile(f"{where}: k = {k} active latents cannot exceed the width {width}")
        return d_in, width, k

    def load(self, roots: Roots) -> SparseAutoencoder:
        """The SAE in float32. Raises RefusedFile when the weights are not those cfg.json promises."""
        from latentbench.sae.encoders import TopKRule
        from latentbench.sae.sources.tensors import checked, dictionary, read_safetensors

        d_in, width, k = self.sizes(roots)
        rows = (width, d_in)
        shapes = {"encoder.weight": rows, "encoder.bias": (width,), "W_dec": rows, "b_dec": (d_in,)}
        weights = read_safetensors(self.folder(roots) / WEIGHTS)
        found = checked(weights, shapes, (), f"{self.path}/{WEIGHTS}")
        encoder, bias, decoder, b_dec = (found[name] for name in shapes)
        return dictionary(encoder, bias, decoder, b_dec, TopKRule(k), centred=True)


def _check_kind(config: dict[str, Json], where: str) -> None:
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise RefusedFile(f"{where}: the activation {str(activation)[:40]!r} is not supported, only topk is")
    for key, meaning in _OTHER_MODELS.items():
        if config.get(key):
            raise RefusedFile(f"{where}: with {key} this is {meaning}; only plain TopK SAEs are supported")
