"""`load: {adapter: dictionary_learning, path: …}`: an SAE that the dictionary_learning library saved.

The folder holds config.json, whose `trainer` names class and sizes, and ae.safetensors or ae.pt. A `.pt` file is read
by torch's restricted reader only: what is more than tensors is refused, never unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.core.untrusted_files import config_object, optional_positive, positive, read_json
from latentbench.sae.sources.base import (
    SaeFacts,
    SaeSource,
    digests,
    model_of,
    sae_folder,
)

if TYPE_CHECKING:
    from latentbench.core.sites import Point
    from latentbench.sae.autoencoder import SparseAutoencoder

CONFIG, WEIGHTS = "config.json", ("ae.safetensors", "ae.pt")
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)
"""Values of `trainer.dict_class` that can be loaded."""
_POINTS: tuple[Point, ...] = ("resid_pre", "resid_post", "mlp_out", "attn_out")


class DictionaryLearningSource(SaeSource):
    """A folder that the dictionary_learning library saved: config.json and ae.pt (or ae.safetensors)."""

    adapter: Literal["dictionary_learning"] = "dictionary_learning"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """The folder of one SAE, e.g. `saes/resid_post_layer_12/trainer_0`."""

    def identity(self, roots: Roots) -> Json:
        folder = self.folder(roots)
        return digests(folder, (self.weights_file(folder), CONFIG))

    def folder(self, roots: Roots) -> Path:
        """The folder meant by `path`. Raises NotAvailable."""
        return sae_folder(roots, self.path, "an SAE saved by dictionary_learning", (CONFIG,))

    def weights_file(self, folder: Path) -> str:
        """Name of the file of weights; ae.safetensors where there are both. Raises NotAvailable."""
        found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
        if found is None:
            raise NotAvailable(f"{self.path} is not an SAE saved by dictionary_learning: it holds no {WEIGHTS[1]}")
        return found

    def trainer(self, roots: Roots) -> dict[str, Json]:
        """The section `trainer` of config.json. Raises RefusedFile for classes that cannot be loaded."""
        where = f"{self.path}/{CONFIG}"
        config = config_object(read_json(self.folder(roots) / CONFIG), where)
        trainer = config_object(config.get("trainer"), f"{where}: trainer")
        if trainer.get("dict_class") not in CLASSES:
            known = ", ".join(CLASSES)
            raise RefusedFile(f"{where}: the class {str(trainer.get('dict_class'))[:60]!r} is not one of {known}")
        return trainer

    def facts(self, roots: Roots) -> SaeFacts:
        trainer, where = self.trainer(roots), f"{self.path}/{CONFIG}"
        d_in, width = positive(trainer, "activation_dim", where), positive(trainer, "dict_size", where)
        layer = trainer.get("layer")
        stated = layer if isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 else None
        submodule = str(trainer.get("submodule_name") or "")
        point = next((p for p in _POINTS if submodule.startswith(p)), None)
        return SaeFacts(d_in, width, stated, point, model_of(trainer, "lm_name"))

    def load(self, roots: Roots) -> SparseAutoencoder:
        """The SAE in float32. Raises RefusedFile when the weights are not those config.json promises."""
        from latentbench.sae.sources.tensors import read_safetensors, read_torch
        from latentbench_adapters.dictionary_learning_weights import build

        folder, trainer, facts = self.folder(roots), self.trainer(roots), self.facts(roots)
        name, where = self.weights_file(folder), f"{self.path}/{CONFIG}"
        k = optional_positive(trainer, "k", where)
        weights = (read_torch if name.endswith(".pt") else read_safetensors)(folder / name)
        sizes = (positive(trainer, "activation_dim", where), positive(trainer, "dict_size", where))
        assert sizes == (facts.d_in, facts.width)
        return build(str(trainer["dict_class"]), *sizes, k, weights, f"{self.path}/{name}")
