"""Native SAEs leave as sae-lens SAEs that reconstruct the same, and as our own folders, from code and command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

import latentbench_adapters.sae_lens.classes  # noqa: F401  (what users are told to import)
from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.exchange.sae_export import save_stored
from latentbench.execute.sae_loading import StoredSae
from latentbench.sae import options as o
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.linear import ConcatenatedSAE, linear_weights
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.sources.base import SaeFormat, SaeOrigin, hook_name, sae_lens_format, site_of
from latentbench_adapters.sae_lens.export import export
from latentbench_adapters.sae_lens.saes import LoadedFromSaeLens, from_disk
from tests.conftest import Command, furnish
from tests.support.project import Workbench, run
from tests.support.saes import BASE, D_IN, PLAIN, WIDTH, K, built, hidden_states, on_bases

ORIGIN = SaeOrigin("owner/model", Site(index=3), "model.layers.3", 128, "c" * 64)


def same_reconstruction(sae: SparseAutoencoder, other: SAE | SparseAutoencoder) -> None:
    x = hidden_states()
    ours, theirs = sae(x), other(x)
    assert ours.std(0).min() > 0.1  # not only the bias is reconstructed
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


def checked_export(sae: SparseAutoencoder, folder: Path, architecture: str, equivalence: str) -> None:
    done = export(sae, folder, ORIGIN)
    assert (done.architecture, done.equivalence) == (architecture, equivalence)
    assert (done.needs_import is not None) == architecture.startswith("latentbench")
    theirs = SAE.load_from_disk(folder)
    assert theirs.cfg.architecture() == architecture
    assert sorted(file.name for file in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    same_reconstruction(sae, theirs)
    codes = sae.encode(hidden_states()).dense(sae.width)
    torch.testing.assert_close(theirs.encode(hidden_states()), codes, rtol=1e-4, atol=1e-5)
    assert 0 < (codes != 0).sum(1).float().mean() < sae.width


@pytest.mark.parametrize("name", PLAIN)
def test_every_variant_reconstructs_the_same_in_sae_lens(name: str, tmp_path: Path) -> None:
    options, architecture, equivalence = PLAIN[name]
    checked_export(built(options), tmp_path / "out", architecture, equivalence)


def test_saes_that_stand_on_others_become_one_dictionary(tmp_path: Path) -> None:
    for name, (sae, architecture, equivalence) in on_bases().items():
        checked_export(sae, tmp_path / name, architecture, equivalence)


def test_a_boosted_sae_on_a_loaded_base_is_one_dictionary_too(tmp_path: Path) -> None:
    for name in ("topk", "standard", "gated", "jumprelu"):
        export(built(PLAIN[name][0]), tmp_path / name)
        base = from_disk(tmp_path / name)
        same_reconstruction(base, ConcatenatedSAE(linear_weights(base)))
        boosted = built(o.BoostedOptions(base=BASE, width=16, k=3), base)
        export(boosted, tmp_path / f"{name}-boosted")
        same_reconstruction(boosted, SAE.load_from_disk(tmp_path / f"{name}-boosted"))


def test_registered_classes_can_be_taken_apart_and_exported_again(tmp_path: Path) -> None:
    sae = on_bases()["boosted_topk_base"][0]
    export(sae, tmp_path / "once")
    again = from_disk(tmp_path / "once")
    same_reconstruction(sae, ConcatenatedSAE(linear_weights(again)))
    export(again, tmp_path / "twice")
    same_reconstruction(sae, SAE.load_from_disk(tmp_path / "twice"))


def test_every_smaller_budget_of_a_hierarchical_sae_is_a_change_of_k(tmp_path: Path) -> None:
    sae = built(PLAIN["hierarchical"][0])
    export(sae, tmp_path / "out")
    config = json.loads((tmp_path / "out/cfg.json").read_text())
    assert config["k"] == K
    (tmp_path / "out/cfg.json").write_text(json.dumps({**config, "k": 2}))
    x = hidden_states()
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "out")(x), sae.decode(sae.encode(x, 2)))


def test_the_configuration_says_where_the_sae_comes_from(tmp_path: Path) -> None:
    export(built(PLAIN["topk"][0]), tmp_path / "out", ORIGIN)
    metadata = SAE.load_from_disk(tmp_path / "out").cfg.metadata
    assert (metadata.model_name, metadata.context_size) == ("owner/model", 128)
    assert (metadata.hook_name, metadata.hf_hook_name) == ("blocks.3.hook_resid_post", "model.layers.3")
    assert (metadata.latentbench_cell, metadata.latentbench_equivalence) == ("c" * 64, "exact")
    assert metadata.latentbench_version


@pytest.mark.parametrize("options", [o.IdentityOptions(), o.MeanOptions(), o.PCAOptions(k=4)])
def test_controls_without_an_equivalent_are_refused(options: o.Variant, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no equivalent in sae-lens"):
        export(built(options), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_boosted_sae_on_a_base_without_linear_encoder_is_refused(tmp_path: Path) -> None:
    sae = built(o.BoostedOptions(base=BASE, width=16, k=3), built(PLAIN["kron_mand_topk"][0]))
    with pytest.raises(InvalidInput, match="no equivalent linear encoder"):
        export(sae, tmp_path / "out")


def test_nothing_is_overwritten_and_no_random_number_is_drawn(tmp_path: Path) -> None:
    sae = built(PLAIN["topk"][0])
    before = torch.get_rng_state()
    export(sae, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InvalidInput, match="exists already"):
        export(sae, tmp_path / "out")


def test_our_own_folders_hold_their_bases_whatever_made_them(tmp_path: Path) -> None:
    from latentbench.sae.sources.native import NativeSource

    export(built(PLAIN["jumprelu"][0]), tmp_path / "lens")
    source = LoadedSae.model_validate({"load": {"adapter": "sae_lens", "path": "lens"}})
    roots = Roots(tmp_path)
    base = StoredSae(source, source.load.load(roots))
    first = o.BoostedOptions(base=source.plain(), width=16, k=3)
    below = StoredSae(first, built(first, base.sae), (base,))
    second = o.BoostedOptions(base=first.plain(), width=8, k=2, selection="topk")
    stored = StoredSae(second, built(second, below.sae, seed=4), (below,))
    save_stored(stored, tmp_path / "mine")
    read = NativeSource(path="mine")
    same_reconstruction(stored.sae, read.load(roots))
    before = read.identity(roots)
    (tmp_path / "mine/base0/base0/cfg.json").write_text("{}")
    assert read.identity(roots) != before
    with pytest.raises(RefusedFile):
        read.load(roots)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project with two finished cells, made once."""
    bench = furnish(tmp_path_factory.mktemp("finished") / "project", tiny_model)
    boosted = {"variant": "boosted", "width": 8, "k": 2, "base": {"variant": "topk", "width": 32, "k": 4}}
    bench.spec("boost", sae=boosted, metrics=["explained_variance"], seeds=[0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bench.root)
        assert run(["run", "boost", "--executor", "inline"]) == 0
    return bench.root


@pytest.fixture
def trained(bench: Workbench, finished: Path) -> Workbench:
    """A copy of it that a test may change."""
    return Workbench(shutil.copytree(finished, bench.root, dirs_exist_ok=True))


def test_the_command_line_exports_what_a_cell_measured(trained: Workbench, command: Command) -> None:
    done = command("export", "boost[1]", "--output", "out/lens")
    assert done.code == 0, done.err
    assert "registered class latentbench_groups, exact" in done.out
    assert "import latentbench_adapters.sae_lens.classes" in done.out
    assert command("export", "boost[1]", "--to", "latentbench", "--output", "out/own").code == 0
    metadata = SAE.load_from_disk(trained.root / "out/lens").cfg.metadata
    assert metadata.model_name == "./model"
    assert (metadata.hook_name, metadata.hf_hook_name) == ("blocks.0.hook_resid_post", "model.layers.0")
    assert metadata.latentbench_cell == trained.records()["boost[][1]"].cell
    assert {path.name for path in (trained.root / "out/own").iterdir()} == {
        "base0",
        "export.json",
        "sae.json",
        "sae.safetensors",
        "training.json",
    }


def test_an_exported_sae_measures_the_same_as_the_cell_it_came_from(trained: Workbench, command: Command) -> None:
    for to in ("sae_lens", "latentbench"):
        assert command("export", "boost[0]", "--to", to, "--output", f"out/{to}").code == 0
        trained.spec(to, sae={"load": {"adapter": to, "path": f"out/{to}"}}, metrics=["explained_variance"])
        done = command("run", to, "--executor", "inline")
        assert done.code == 0, done.err
    records = trained.records()
    original = records["boost[][0]"].metrics[0].value
    assert original is not None
    for to in ("sae_lens", "latentbench"):
        assert records[f"{to}[][0]"].metrics[0].value == pytest.approx(original, abs=1e-5)


def test_the_command_line_says_what_it_cannot_export(trained: Workbench, command: Command) -> None:
    several = command("export", "boost", "--output", "out")
    assert several.code == 2
    assert "say which seed" in several.err
    assert command("export", "nothing", "--output", "out").code == 2
    existing = command("export", "boost[0]", "--output", "data")
    assert existing.code == 2
    assert "exists already" in existing.err
    for artifact in (trained.root / "results/store/objects/sae").glob("*/*"):
        artifact.rename(artifact.with_suffix(".gone"))
    gone = command("export", "boost[0]", "--output", "out")
    assert gone.code == 2
    assert "not in the store" in gone.err
    assert not (trained.root / "out").exists()


def test_loaded_saes_keep_sae_lens_own_normalisation(tmp_path: Path) -> None:
    export(built(PLAIN["standard"][0]), tmp_path / "plain")
    config = json.loads((tmp_path / "plain/cfg.json").read_text())
    (tmp_path / "plain/cfg.json").write_text(json.dumps({**config, "normalize_activations": "layer_norm"}))
    loaded = from_disk(tmp_path / "plain")
    assert isinstance(loaded, LoadedFromSaeLens)
    with pytest.raises(InvalidInput, match="layer_norm"):
        linear_weights(loaded)
    export(loaded, tmp_path / "again")
    same_reconstruction(loaded, SAE.load_from_disk(tmp_path / "again"))
    assert (loaded.d_in, loaded.width) == (D_IN, WIDTH)


def test_the_format_is_found_by_its_name_and_reads_what_it_writes(tmp_path: Path) -> None:
    found: SaeFormat = sae_lens_format()
    sae = built(PLAIN["topk"][0])
    done = found.save(sae, tmp_path / "out", ORIGIN)
    assert (done.architecture, done.equivalence, done.needs_import) == ("topk", "exact", None)
    assert sorted(found.files) == sorted(file.name for file in (tmp_path / "out").iterdir())
    same_reconstruction(sae, found.load(tmp_path / "out"))


def test_the_names_of_a_formats_files_need_no_torch() -> None:
    code = "import sys; from latentbench_adapters.sae_lens.format import SaeLensFormat as f; f().files; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_sites_are_named_as_they_are_read() -> None:
    for site in (Site(index=3), Site(index=11, point="mlp_out"), Site(index=0, point="resid_pre")):
        assert site_of(hook_name(site)) == (site.index, site.point)
