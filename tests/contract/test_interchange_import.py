"""SAEs that other libraries saved are read as those libraries compute them; whatever is wrong with them is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_class
from safetensors.torch import save_file

from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.sae import artifact
from latentbench.sae.linear import linear_weights
from latentbench.sae.options import BoostedOptions, TopKOptions
from latentbench.sae.sources.base import SaeFacts, SaeOrigin
from latentbench.sae.sources.native import NativeSource, load_base
from latentbench.spec.fit import other_model
from latentbench_adapters.dictionary_learning import DictionaryLearningSource
from latentbench_adapters.sae_lens.export import export
from latentbench_adapters.sae_lens.source import SaeLensSource
from latentbench_adapters.sparsify import SparsifySource
from tests.conftest import Command
from tests.support.project import Workbench
from tests.support.saes import PLAIN, Weights, built, hidden_states, random, strongest
from tests.support.tiny import D_MODEL

D, F, K = 12, 40, 4


SPARSIFY = {
    "d_in": D,
    "num_latents": F,
    "expansion_factor": 32,
    "k": K,
    "activation": "topk",
    "normalize_decoder": True,
}


def sparsify(root: Path, name: str = "layers.2", weights: Weights | None = None, **config: Any) -> Weights:
    """Writes a folder as sparsify does and returns its weights."""
    made = random(encoder__weight=(F, D), encoder__bias=(F,), W_dec=(F, D), b_dec=(D,)) if weights is None else weights
    folder = root / name
    folder.mkdir(exist_ok=True)
    save_file(made, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**SPARSIFY, **config}))
    return made


@pytest.mark.parametrize("config", [{}, {"num_latents": 0, "expansion_factor": F // D}])
def test_sparsify(tmp_path: Path, config: dict[str, int]) -> None:
    width = config.get("expansion_factor", 0) * D or F
    w = random(encoder__weight=(width, D), encoder__bias=(width,), W_dec=(width, D), b_dec=(D,))
    sparsify(tmp_path, weights=w, **config)
    x, source = hidden_states(), SparsifySource(path="layers.2")
    latents = strongest(((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu(), K)
    sae = source.load(Roots(tmp_path))
    torch.testing.assert_close(sae.encode(x).dense(width), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), latents @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-5)
    assert source.facts(Roots(tmp_path)) == SaeFacts(D, width, 2, "resid_post")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "groupmax"}, "groupmax"),
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip"),
        ({"signed": True}, "signed"),
        ({"d_in": D + 1}, "asks for"),
        ({"num_latents": 10**9}, "asks for"),
        ({"k": F + 1}, "cannot exceed"),
        ({"k": "4"}, "whole number"),
        ({"k": True}, "whole number"),
        ({"d_in": None}, "d_in is missing"),
    ],
)
def test_sparsify_configurations_that_cannot_be_right_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    sparsify(tmp_path, **change)
    with pytest.raises(RefusedFile, match=said):
        SparsifySource(path="layers.2").load(Roots(tmp_path))


def test_weights_that_are_not_what_was_promised_are_refused(tmp_path: Path) -> None:
    source, good = SparsifySource(path="layers.2"), sparsify(tmp_path)
    wrong: list[tuple[Weights, str]] = [
        ({n: t for n, t in good.items() if n != "b_dec"}, r"missing tensors \['b_dec'\]"),
        ({**good, "W_skip": torch.ones(D, D)}, r"unexpected tensors \['W_skip'\]"),
        ({**good, "W_dec": torch.full((F, D), math.nan)}, "NaN"),
        ({**good, "W_dec": torch.ones(F, D, dtype=torch.int64)}, "floating-point"),
    ]
    for weights, said in wrong:
        sparsify(tmp_path, weights=weights)
        with pytest.raises(RefusedFile, match=said):
            source.load(Roots(tmp_path))
    whole = (tmp_path / "layers.2/sae.safetensors").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\xff" * 64):
        (tmp_path / "layers.2/sae.safetensors").write_bytes(content)
        with pytest.raises(RefusedFile, match="safetensors"):
            source.load(Roots(tmp_path))
    for text in ("", "[1]", "{" * 5000):
        (tmp_path / "layers.2/cfg.json").write_text(text)
        with pytest.raises(RefusedFile):
            source.facts(Roots(tmp_path))


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    sparsify(tmp_path)
    (tmp_path / "layers.2/cfg.json").unlink()
    for source in (SparsifySource(path="layers.2"), DictionaryLearningSource(path="layers.2")):
        with pytest.raises(NotAvailable, match="it holds no"):
            source.identity(Roots(tmp_path))
    with pytest.raises(NotAvailable, match="not a folder"):
        SparsifySource(path="nowhere").identity(Roots(tmp_path))
    with pytest.raises(ValueError, match="outside the project"):
        SparsifySource(path="../elsewhere").identity(Roots(tmp_path))


def test_the_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    sparsify(tmp_path, "layers.2")
    sparsify(tmp_path, "layers.3")
    one, two = (SparsifySource(path=f"layers.{n}").identity(Roots(tmp_path)) for n in (2, 3))
    assert one == two
    sparsify(tmp_path, "layers.3", k=K - 1)
    assert SparsifySource(path="layers.3").identity(Roots(tmp_path)) != one


def test_sae_lens_folders_say_what_they_are_and_lies_are_refused(tmp_path: Path) -> None:
    export(built(PLAIN["topk"][0]), tmp_path / "lens", SaeOrigin(model="gpt2", site=Site(index=1, point="mlp_out")))
    source, path = SaeLensSource(path="lens"), tmp_path / "lens/cfg.json"
    assert source.facts(Roots(tmp_path)) == SaeFacts(12, 48, 1, "mlp_out", "gpt2")
    honest = json.loads(path.read_text())
    for lie in ({"d_in": 13}, {"d_sae": 10**9}, {"architecture": "gated"}, {"architecture": "nothing"}, {"k": 49}):
        path.write_text(json.dumps({**honest, **lie}))
        with pytest.raises(RefusedFile):
            source.load(Roots(tmp_path))(hidden_states())
    path.write_text(json.dumps(honest))
    (tmp_path / "lens/sae_weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(RefusedFile):
        source.load(Roots(tmp_path))


MLPS = {
    "transcoder": ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
    "skip_transcoder": ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
    "jumprelu_transcoder": (
        "model.layers.3.pre_feedforward_layernorm.output",
        "model.layers.3.post_feedforward_layernorm.output",
    ),
    "jumprelu_skip_transcoder": ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
}


@pytest.mark.parametrize("kind", MLPS)
def test_transcoders_of_sae_lens_between_both_sides_of_an_mlp_predict_what_sae_lens_predicts(
    tmp_path: Path, kind: str
) -> None:
    """Gemma Scope 2's are `jumprelu_transcoder`s, with `affine` ones beside them, and say in `hf_hook_name` where they read."""
    sae_class, config_class = get_sae_class(kind)
    names = (
        ("hf_hook_name", "hf_hook_name_out") if MLPS[kind][0].startswith("model") else ("hook_name", "hook_name_out")
    )
    # TransformerLens' names of the same transcoder say less; they do not count beside the module paths.
    metadata = {"hook_name": "blocks.3.hook_mlp_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    metadata |= dict(zip(names, MLPS[kind], strict=True))
    sizes = {"architecture": kind, "d_in": 12, "d_sae": 48, "d_out": 12, "apply_b_dec_to_input": False}
    inner = sae_class(config_class.from_dict({**sizes, "metadata": metadata}))
    generator = torch.Generator().manual_seed(2)
    for parameter in inner.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    inner.save_model(tmp_path / "lens")
    source = SaeLensSource(path="lens")
    facts, sae, x = source.facts(Roots(tmp_path)), source.load(Roots(tmp_path)), hidden_states()
    assert (facts.d_in, facts.width, facts.layer, facts.point) == (12, 48, 3, "mlp")
    assert sae.paired
    torch.testing.assert_close(sae(torch.cat([x, x.flip(0)], 1)), inner(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode(x).dense(48), inner.encode(x))
    with pytest.raises(InvalidInput, match="transcoder"):
        BoostedOptions(base=TopKOptions(width=8, k=2), width=8, k=2).build(12, generator, (sae,))
    with pytest.raises(InvalidInput, match="transcoder"):
        linear_weights(sae)


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "by its hooks"])
def test_transcoders_of_sae_lens_are_no_saes(tmp_path: Path, kind: str) -> None:
    """They read one hidden state and predict another, and sae-lens loads them as it loads SAEs."""
    architecture, hooks = ("standard", kind) if kind == "by its hooks" else (kind, None)
    sae_class, config_class = get_sae_class(architecture)
    sizes = {"architecture": architecture, "d_in": 12, "d_sae": 48, "apply_b_dec_to_input": False} | (
        {} if hooks else {"d_out": 12}
    )
    metadata = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"} if hooks else {}
    sae_class(config_class.from_dict({**sizes, "metadata": metadata})).save_model(tmp_path / "lens")
    source = SaeLensSource(path="lens")
    for read in (source.facts, source.load):
        with pytest.raises(RefusedFile, match=r"transcoder: it (reads|predicts)"):
            read(Roots(tmp_path))
    with pytest.raises(RefusedFile, match="transcoder"):
        load_base(tmp_path / "lens")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_in": 10**9}, "no tensor"),
        ({"d_in": "12"}, "d_in"),
        ({"options": {"variant": "topk", "width": 10**9, "k": 4}}, "no tensor"),
        ({"options": {"variant": "nothing"}}, "known variants"),
        ({"options": {"variant": "batch_topk", "width": 48, "k": 5}}, "missing tensors"),
        ({"bases": ["0" * 64]}, "no folder base0"),
        ({"bases": 3}, "list of digests"),
    ],
)
def test_headers_of_our_own_that_lie_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    artifact.save(built(PLAIN["topk"][0]), TopKOptions(width=48, k=5), 12, tmp_path / "own")
    source, path = NativeSource(path="own"), tmp_path / "own/sae.json"
    assert source.facts(Roots(tmp_path)) == SaeFacts(12, 48)
    path.with_name("export.json").write_text('{"hook_name": "blocks.4.hook_resid_post"}')
    assert source.facts(Roots(tmp_path)) == SaeFacts(12, 48, 4, "resid_post")
    path.with_name("export.json").write_text('{"model_name": "EleutherAI/pythia-70m"}')
    assert source.facts(Roots(tmp_path)) == SaeFacts(12, 48, model="EleutherAI/pythia-70m")
    assert source.load(Roots(tmp_path)).width == 48
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RefusedFile, match=said):
        source.load(Roots(tmp_path))


@pytest.mark.parametrize(
    ("id", "facts"),
    [
        ("layer_12/width_16k/canonical", SaeFacts(layer=12)),
        ("blocks.8.hook_resid_pre", SaeFacts(layer=8, point="resid_pre")),
        ("something-else", SaeFacts()),
    ],
)
def test_of_a_registered_sae_only_the_id_is_known(id: str, facts: SaeFacts) -> None:
    assert SaeLensSource(release="some-release", id=id).facts(Roots(Path())) == facts


def spec(load: str, layer: int | str = 0) -> str:
    return f"""\
model: {{adapter: transformers, id: ./model}}
layer: {layer}
dataset:
  train: {{adapter: files, path: data/train.jsonl, tokens: 1024, context: 16}}
  eval:
    lab: {{adapter: files, path: data/eval.jsonl, documents: 6, context: 16}}
sae:
  {load}
metrics: [explained_variance]
"""


@pytest.mark.parametrize("on", ["load: {load}", "variant: boosted\n  base:\n    load: {load}"])
@pytest.mark.parametrize(
    ("d_in", "folder", "layer", "said"),
    [
        (D_MODEL, "layers.0", 0, None),
        (D_MODEL, "layers.0", "{index: 1, point: resid_pre}", None),
        (D_MODEL, "layers.0", 1, "was trained on layer 0.resid_post, the spec reads layer 1.resid_post"),
        (D_MODEL, "layers.0.mlp", 0, "was trained on layer 0.mlp_out"),
        (D, "layers.0", 0, f"reads {D} dimensions, the model's hidden states have {D_MODEL}"),
        (D, "nowhere", 0, "it holds no cfg.json"),
    ],
)
def test_saes_of_another_place_are_refused_at_validation(
    bench: Workbench, command: Command, on: str, d_in: int, folder: str, layer: int | str, said: str | None
) -> None:
    weights = random(encoder__weight=(F, d_in), encoder__bias=(F,), W_dec=(F, d_in), b_dec=(d_in,))
    sparsify(bench.root, folder, weights=weights, d_in=d_in)
    if folder == "nowhere":
        (bench.root / "nowhere/cfg.json").unlink()
    bench.write("specs/s.yaml", spec(on.format(load=f"{{adapter: sparsify, path: {folder}}}"), layer))
    done = command("validate", "s")
    if said is None:
        assert done.code == 0, done.err
        return
    place = "specs/s.yaml:8:9: sae.load: " if on.startswith("load") else "specs/s.yaml:10:11: sae.base.load: "
    assert done.code == 2
    assert done.err.startswith(place)
    assert said in done.err


@pytest.mark.parametrize(
    ("sae", "said"),
    [
        (f"{{variant: fine_tuned, k: {F}, base: BASE}}", None),
        (f"{{variant: fine_tuned, k: {F + 1}, base: BASE}}", f"k = {F + 1} active latents cannot exceed"),
        (f"{{variant: stitched, grafted: {F + 1}, base: BASE}}", f"has only {F} latents"),
        (
            f"{{variant: extended, extra_width: {F + 1}, init: most_active, base: BASE}}",
            f"has only {F} latents to copy",
        ),
        (f"{{variant: pca, k: {D_MODEL + 1}}}", f"components do not exist in {D_MODEL} dimensions"),
    ],
)
def test_what_a_loaded_base_or_the_model_is_too_small_for_is_refused_at_validation(
    bench: Workbench, command: Command, sae: str, said: str | None
) -> None:
    weights = random(encoder__weight=(F, D_MODEL), encoder__bias=(F,), W_dec=(F, D_MODEL), b_dec=(D_MODEL,))
    sparsify(bench.root, "layers.0", weights=weights, d_in=D_MODEL)
    bench.write("specs/s.yaml", spec(sae.replace("BASE", "{load: {adapter: sparsify, path: layers.0}}")))
    done = command("validate", "s")
    assert done.code == (0 if said is None else 2), done.err
    assert said is None or (said in done.err and done.err.startswith("specs/s.yaml:8:"))


@pytest.mark.parametrize(
    ("stated", "read", "other"),
    [
        ("gemma-2-2b", "google/gemma-2-2b", False),
        ("unsloth/Gemma-2-2B", "google/gemma-2-2b", False),
        ("gpt2-small", "openai-community/gpt2", False),
        ("gemma-2-2b", "google/gemma-2-2b-it", False),
        ("tiny-stories-1L-21M", "roneneldan/TinyStories-1Layer-21M", False),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", False),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-160m", True),
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3.1-8B", True),
        ("gemma-2b", "google/gemma-2-2b", True),
        ("gpt2-small", "pocket", True),
    ],
)
def test_only_names_of_clearly_different_models_are_told_apart(stated: str, read: str, other: bool) -> None:
    assert other_model(stated, read) is other
    assert other_model(read, stated) is other


@pytest.mark.parametrize("on", ["load: {load}", "variant: boosted\n  base:\n    load: {load}"])
@pytest.mark.parametrize(("stated", "refused"), [("pocket", False), ("/home/me/pocket-2", False), ("pythia-70m", True)])
def test_saes_of_another_model_are_refused_at_validation(
    bench: Workbench, command: Command, on: str, stated: str, refused: bool
) -> None:
    sae = TopKOptions(width=48, k=5).build(128, torch.Generator())
    export(sae, bench.root / "lens", SaeOrigin(model=stated, site=Site(index=0)))
    text = spec(on.format(load="{adapter: sae_lens, path: lens}")).replace(
        "adapter: transformers, id: ./model", "adapter: pocket"
    )
    bench.write("specs/s.yaml", text)
    done = command("validate", "s")
    assert done.code == (2 if refused else 0), done.err
    assert ("this SAE was trained on the model pythia-70m, the spec reads pocket" in done.err) is refused
