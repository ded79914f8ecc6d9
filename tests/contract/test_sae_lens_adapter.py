"""SAEs that sae-lens saved or trains: the same reconstructions, identities that follow content, damage refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from latentbench.core.errors import RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugins
from latentbench.core.sites import Site
from latentbench.sae import artifact
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer
from latentbench_adapters.sae_lens.source import SaeLensSource


@pytest.fixture
def saved(roots: Roots) -> StandardSAE:
    """An SAE with random weights, saved by sae-lens in `sae/`."""
    sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=16, apply_b_dec_to_input=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    sae.save_model(roots.project / "sae")
    return sae


def test_an_sae_that_sae_lens_saved_reconstructs_identically(roots: Roots, saved: StandardSAE) -> None:
    loaded = SaeLensSource(path="sae").load(roots)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.encode(x).dense(16), saved.encode(x))
    assert torch.equal(loaded(x), saved(x))
    assert torch.equal(loaded(x), SAE.load_from_disk(roots.project / "sae")(x))


def test_the_identity_of_a_saved_sae_follows_its_content(roots: Roots, saved: StandardSAE) -> None:
    source = SaeLensSource(path="sae")
    before = source.identity(roots)
    with torch.no_grad():
        saved.b_dec += 1
    saved.save_model(roots.project / "sae")
    assert source.identity(roots) != before


@pytest.mark.parametrize("file", ["sae_weights.safetensors", "cfg.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xff", b'{"architecture": "nothing"}'])
def test_a_damaged_sae_is_refused(roots: Roots, saved: StandardSAE, file: str, content: bytes) -> None:
    (roots.project / "sae" / file).write_bytes(content)
    with pytest.raises(RefusedFile, match="not an SAE that sae-lens can read"):
        SaeLensSource(path="sae").load(roots)


VARIANTS = {"sae_lens_standard": {"l1": 1e-3}, "sae_lens_gated": {"l1": 1e-3}, "sae_lens_jumprelu": {"l0": 1e-4}}


def test_every_sae_lens_variant_is_tested_here() -> None:
    assert {name for name in plugins("variants") if name.startswith("sae_lens")} == VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sae_lens_variant_trains_the_same_every_time_and_reloads_identically(variant: str, tmp_path: Path) -> None:
    options = plugins("variants")[variant].model_validate({"width": 24, **VARIANTS[variant]})
    training = TrainingOptions(batch=32, buffer=64, lr=3e-3)
    data = torch.randn(30, 32, 8, generator=torch.Generator().manual_seed(0)) * 3

    def trainer() -> NativeTrainer:
        sae = options.build(8, torch.Generator().manual_seed(7))  # type: ignore[attr-defined]
        return NativeTrainer(sae, Site(index=0), training, steps=30, first_norm=8.0, mean=data[0].mean(0))

    whole, torn = trainer(), trainer()
    torch.manual_seed(123)  # what the global generator does must not matter
    for number, x in enumerate(data):
        whole.step(x)
        if number == 11:
            state, torn = torn.state(), trainer()
            torn.load_state(state)
        torn.step(x)
    assert not torch.equal(whole.sae.inner.W_dec, trainer().sae.inner.W_dec), "nothing was learned"  # type: ignore[union-attr]
    finished, other = whole.finish(), torn.finish()
    assert artifact.weights_digest(finished) == artifact.weights_digest(other)
    artifact.save(finished, options, 8, tmp_path / "sae")  # type: ignore[arg-type]
    loaded = artifact.load(tmp_path / "sae")
    assert artifact.weights_digest(loaded) == artifact.weights_digest(finished)
    assert torch.equal(loaded(data[0]), finished(data[0]))
