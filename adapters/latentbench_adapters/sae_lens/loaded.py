"""A trained sae-lens SAE behind the harness's interface."""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens import SAE
from torch import Tensor

from latentbench.border import foreign
from latentbench.errors import NotAvailable, RefusedFile
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.codes import Codes
from latentbench.sae.linear import LinearWeights
from latentbench_adapters.sae_lens import classes  # noqa: F401  (so that sae-lens knows the classes that exports may need)
from latentbench_adapters.sae_lens.source import other_output
from latentbench_adapters.sae_lens.weights import weights_of


class LoadedFromSaeLens(SparseAutoencoder):
    """Encodes and decodes exactly as sae-lens does, run-time normalisation of the input included."""

    def __init__(self, inner: SAE) -> None:
        """Raises RefusedFile for a transcoder, which sae-lens loads through the same door."""
        super().__init__()
        metadata = inner.cfg.metadata
        names = (getattr(metadata, name, None) for name in ("hook_name", "hook_name_out"))
        if other := other_output(inner.cfg.architecture(), *names):
            raise RefusedFile(other)
        self.inner = inner
        self.d_in, self.width = int(inner.cfg.d_in), int(inner.cfg.d_sae)

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = Codes.from_dense(self.inner.encode(x.to(self.inner.dtype)))
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        # sae-lens may undo its input normalisation in decode, so the dense latents go through its own code.
        out: Tensor = self.inner.decode(codes.dense(self.width).to(self.inner.dtype))
        return out

    def decoder_rows(self) -> Tensor:
        rows: Tensor = self.inner.W_dec
        return rows

    def linear_weights(self) -> LinearWeights:
        """The weights as groups that read x. Raises InvalidInput where sae-lens' class has no such equivalent."""
        return weights_of(self.inner)


def from_registry(release: str, sae_id: str) -> LoadedFromSaeLens:
    """A registered SAE. Raises NotAvailable with the nearest names, or with what to do when the hub is out of reach."""
    with foreign(f"sae-lens cannot load {release!r} / {sae_id!r}", kind=NotAvailable):
        return LoadedFromSaeLens(SAE.from_pretrained(release, sae_id, device="cpu"))


def from_disk(folder: Path) -> LoadedFromSaeLens:
    """An SAE that sae-lens saved. Raises RefusedFile when the files do not fit together."""
    with foreign(f"{folder.name} is not an SAE that sae-lens can read"), torch.random.fork_rng(devices=[]):
        loaded = LoadedFromSaeLens(SAE.load_from_disk(folder, device="cpu"))
        with torch.no_grad():
            loaded(torch.zeros(1, loaded.d_in))  # sae-lens checks neither k nor groups when it loads
        return loaded
