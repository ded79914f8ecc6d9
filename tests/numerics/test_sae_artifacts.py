"""An SAE on disk: what is saved comes back, what is damaged is refused, and every variant builds what it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentbench.core.errors import RefusedFile
from latentbench.sae import artifact
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import (
    NATIVE,
    BoostedOptions,
    PCAOptions,
    Variant,
)
from latentbench.sae.trainer import Trainer
from latentbench.sae.variants.controls import FittedTrainer
from tests.support.trainers import (
    BASE,
    HERE,
    IDS,
    OPTIONS,
    Blocks,
    D,
    assert_equal_weights,
    base,
    bases,
    trained,
    trainer,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_saving_and_loading_gives_the_same_sae(options: Variant, tmp_path: Path) -> None:
    done, one = trained(options)
    artifact.save(done, options, D, tmp_path, one.training_record(), bases(options))
    loaded = artifact.load(tmp_path, bases(options))
    x = next(Blocks().batches(3))[HERE]
    assert torch.equal(loaded(x), done(x))
    assert_equal_weights(loaded, done)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert artifact.load_training(tmp_path)["curve"]["step"] == list(range(20))


def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    options = BASE

    def broken(change: str, old: str = "", new: str = "") -> Path:
        folder = tmp_path / change
        artifact.save(base(), options, D, folder)
        header = folder / "sae.json"
        header.write_text(header.read_text().replace(old, new) if old else header.read_text())
        return folder

    cases = {
        ('"d_in": 12', '"d_in": 13'): "the options ask for",
        ('"d_in": 12', '"d_in": -1'): "d_in must be a positive integer",
        ('"k": 3', '"k": 99'): "invalid options",
        ('"variant": "topk"', '"variant": "nope"'): "do not name one of the known variants",
        ('"schema": 1', '"schema": 2'): "schema 2 is not",
        ("{", "["): "cannot be read as JSON",
    }
    for i, ((old, new), message) in enumerate(cases.items()):
        with pytest.raises(RefusedFile, match=message):
            artifact.load(broken(str(i), old, new))
    folder = broken("truncated")
    weights = folder / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RefusedFile, match="cannot be read as safetensors"):
        artifact.load(folder)
    with pytest.raises(RefusedFile, match="cannot be read as JSON"):
        artifact.load(tmp_path / "nowhere")


def test_a_boosted_sae_is_refused_on_another_base(tmp_path: Path) -> None:
    options = BoostedOptions(base=BASE, width=16, k=2)
    artifact.save(options.build(D, torch.Generator(), (base(),)), options, D, tmp_path, bases=(base(),))
    other = BASE.build(D, torch.Generator().manual_seed(6))
    for given in ((), (other,)):
        with pytest.raises(RefusedFile, match="other base SAEs"):
            artifact.load(tmp_path, given)


def test_every_native_variant_builds_what_it_names() -> None:
    from importlib import import_module

    for name, cls in NATIVE.items():
        module, attribute = cls.implementation.split(":")
        assert issubclass(getattr(import_module(module), attribute), SparseAutoencoder), name
        assert cls.model_fields["variant"].default == name


def test_protocol_is_met() -> None:
    checked: list[Trainer] = [trainer(BASE), FittedTrainer(PCAOptions(k=2).build(D, torch.Generator()), HERE)]  # type: ignore[arg-type]
    assert [one.next_block for one in checked] == [0, 0]
