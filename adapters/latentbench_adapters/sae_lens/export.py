"""Native SAEs in sae-lens' on-disk format, for everything that reads sae-lens: evaluators, dashboards, steering."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from torch import Tensor

from latentbench.activations.site import Site
from latentbench.sae.base import SparseAutoencoder
from latentbench.store.files import new_folder
from latentbench_adapters.sae_lens import classes
from latentbench_adapters.sae_lens.equivalents import Equivalent, equivalent_of


@dataclass(frozen=True)
class Origin:
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
        """What is known, in the words of sae-lens' metadata where it has some."""
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
class Exported:
    """What was written."""

    architecture: str
    """The class that sae-lens will load it as."""
    equivalence: str
    """`exact` or `exact at k=…`, after `registered class …, ` where sae-lens needs one of ours."""

    @property
    def needs_import(self) -> str | None:
        """The module to import before `SAE.load_from_disk`, or None."""
        return classes.__name__ if self.architecture in (classes.KRON, classes.GROUPS) else None


def hook_name(site: Site) -> str:
    """TransformerLens' name of a site, e.g. `blocks.3.hook_resid_post`."""
    return f"blocks.{site.index}.hook_{site.point}"


def export(sae: SparseAutoencoder, folder: Path, metadata: Origin | None = None) -> Exported:
    """Writes `sae` to the new `folder` so that `sae_lens.SAE.load_from_disk(folder)` reconstructs the same.

    The folder appears whole or not at all. Raises InvalidInput when it exists or when the SAE has no equivalent in
    sae-lens, StoreError when the disk refuses.
    """
    found = equivalent_of(sae)
    notes = {**(metadata or Origin()).fields(), "latentbench_equivalence": found.equivalence}
    with new_folder(folder) as draft:
        assembled(found, notes).save_model(draft)
    return Exported(str(found.config["architecture"]), found.equivalence)


def assembled(found: Equivalent, metadata: dict[str, Any]) -> SAE:
    """The SAE as an object of sae-lens. Its weights are copies on the CPU."""
    sae_class, config_class = get_sae_class(found.config["architecture"])
    # On the meta device sae-lens initialises nothing: no memory, no draw from the global random generator.
    config = config_class.from_dict({**found.config, "device": "meta", "metadata": metadata})
    inner = sae_class(config)
    inner.load_state_dict({name: _copy(tensor) for name, tensor in found.weights.items()}, assign=True)
    inner.cfg.device = "cpu"
    return inner.eval()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.device("cpu"), copy=True).contiguous()
