"""What every adapter promises: an identity of content, nothing unsafe read, and what to do when something is missing."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from latentbench.autointerp.metric import Autointerp
from latentbench.core.errors import LatentbenchError, NotAvailable, RefusedFile
from latentbench.core.hashing import canonical
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugins
from latentbench.core.protocols import DatasetAdapter, ModelAdapter
from latentbench.sae.sources.native import NativeSource
from latentbench.steering.baselines import StackMethod
from latentbench_adapters.datasets import FilesDataset, HuggingFaceDataset, PackageDataset
from latentbench_adapters.dictionary_learning import DictionaryLearningSource
from latentbench_adapters.mixtures import MixedDataset
from latentbench_adapters.package_model import PackageModel
from latentbench_adapters.sae_lens.source import SaeLensSource
from latentbench_adapters.sparsify import SparsifySource
from latentbench_adapters.transformers_model import TransformersModel

CPU = torch.device("cpu")


def mixed(*texts: dict[str, Any]) -> MixedDataset:
    """Texts in equal shares."""
    return MixedDataset.model_validate({"parts": [{"texts": one} for one in texts]})


EXAMPLES: dict[str, Callable[[], Any]] = {
    "models/transformers": lambda: TransformersModel(id="./model"),
    "models/package": lambda: PackageModel(package="some-model", file="some_model/x.gguf", sha256="0" * 64),
    "models/pocket": lambda: plugins("models")["pocket"](),
    "datasets/files": lambda: FilesDataset(path="data/*.jsonl"),
    "datasets/huggingface": lambda: HuggingFaceDataset(id="a/b", revision="c" * 40),
    "datasets/mix": lambda: mixed({"adapter": "files", "path": "data/*.jsonl"}, {"adapter": "pocket", "domain": "law"}),
    "datasets/package": lambda: PackageDataset(package="some-texts", path="some_texts/*.csv"),
    "datasets/pocket": lambda: plugins("datasets")["pocket"](domain="law"),
    "sources/dictionary_learning": lambda: DictionaryLearningSource(path="saes/learning"),
    "sources/latentbench": lambda: NativeSource(path="saes/ours"),
    "sources/sae_lens": lambda: SaeLensSource(release="r", id="i"),
    "sources/sparsify": lambda: SparsifySource(path="saes/sparsify"),
}


def test_every_registered_adapter_has_an_example_here() -> None:
    assert EXAMPLES.keys() == {f"{group}/{n}" for group in ("models", "datasets", "sources") for n in plugins(group)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_identity_is_json_stable_and_free_of_local_paths(name: str, roots: Roots, tmp_path: Path) -> None:
    adapter = EXAMPLES[name]()
    identity = adapter.identity(roots)
    assert canonical(identity) == canonical(EXAMPLES[name]().identity(roots))
    assert json.loads(json.dumps(identity)) == identity
    for path in (tmp_path, roots.project, Path.home(), Path.cwd()):
        assert str(path) not in canonical(identity)
    moved = shutil.copytree(roots.project, tmp_path / "moved")
    assert adapter.identity(Roots(moved)) == identity


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_adapter_survives_the_way_to_a_worker(name: str) -> None:
    adapter = EXAMPLES[name]()
    assert type(adapter).model_validate_json(json.dumps(adapter.plain()), strict=True) == adapter
    assert hash(adapter) == hash(EXAMPLES[name]())


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "model/model.safetensors").write_bytes(
            (root / "model/model.safetensors").read_bytes()[:-1] + b"\1"
        ),
        lambda root: (root / "model/config.json").write_text("{}"),
        lambda root: (root / "model/tokenizer.json").write_text("{}"),
        lambda root: (root / "model/added_tokens.json").write_text("{}"),
    ],
    ids=["weights", "config", "tokenizer", "added tokens"],
)
def test_a_models_identity_follows_its_content(roots: Roots, change: Callable[[Path], object]) -> None:
    model = TransformersModel(id="./model")
    before = model.identity(roots)
    change(roots.project)
    assert model.identity(roots) != before


def test_a_models_data_type_is_part_of_its_identity(roots: Roots) -> None:
    assert TransformersModel(id="./model", dtype="float16").identity(roots) != TransformersModel(id="./model").identity(
        roots
    )


def test_a_folder_loads_in_evaluation_mode_and_without_gradients(roots: Roots) -> None:
    loaded = TransformersModel(id="./model").load(roots, CPU)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    facts = TransformersModel(id="./model").facts(roots)
    assert facts is not None
    assert (facts.layers, facts.d_model) == (loaded.model.config.num_hidden_layers, loaded.model.config.hidden_size)


class _Bomb:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


def test_pickled_weights_are_never_read(roots: Roots, tmp_path: Path) -> None:
    folder, witness = roots.project / "model", tmp_path / "witness"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(witness)))
    model = TransformersModel(id="./model")
    with pytest.raises(NotAvailable, match="pickled weights are not read"):
        model.identity(roots)
    with pytest.raises(NotAvailable, match="cannot be loaded"):
        model.load(roots, CPU)
    assert not witness.exists()


def test_code_that_comes_with_a_model_is_never_run(roots: Roots, tmp_path: Path) -> None:
    folder, witness = roots.project / "model", tmp_path / "witness"
    evil = f"open({str(witness)!r}, 'w')\nclass Evil: pass\n"
    (folder / "evil.py").write_text(evil)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "model_type": "evil"}))
    with pytest.raises(LatentbenchError, match="cannot be loaded"):
        TransformersModel(id="./model").load(roots, CPU)
    assert not witness.exists()


@pytest.mark.parametrize("cut", [0, 100, -50])
def test_damaged_weights_are_refused(roots: Roots, cut: int) -> None:
    weights = roots.project / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(LatentbenchError, match=r"\./model|model"):
        TransformersModel(id="./model").load(roots, CPU)


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(roots: Roots) -> None:
    from safetensors.torch import load_file, save_file

    weights = roots.project / "model/model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RefusedFile, match=r"lacks weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        TransformersModel(id="./model").load(roots, CPU)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "llama"}', "\0", "[" * 50_000])
def test_a_config_that_describes_no_model_is_refused(roots: Roots, content: str) -> None:
    (roots.project / "model/config.json").write_text(content)
    with pytest.raises(RefusedFile, match=r"config\.json"):
        TransformersModel(id="./model").facts(roots)


def test_what_is_not_here_says_what_to_do(roots: Roots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NotAvailable, match="not a model folder"):
        TransformersModel(id="./absent").facts(roots)
    hub = TransformersModel(id="some-owner/some-model")
    assert hub.facts(roots) is None
    assert hub.identity(roots) == {"hub": "some-owner/some-model", "revision": "main", "dtype": "float32"}
    for attempt in (lambda: hub.pinned(roots), lambda: hub.load(roots, CPU), lambda: hub.load_tokenizer(roots)):
        with pytest.raises(NotAvailable, match="go online once"):
            attempt()
    with pytest.raises(NotAvailable, match="go online, or use `adapter: files`"):
        next(iter(HuggingFaceDataset(id="some-owner/some-data").texts(roots)))
    with pytest.raises(NotAvailable, match="holds no sae_weights"):
        SaeLensSource(path="data").identity(roots)
    with pytest.raises(NotAvailable, match="sae-lens cannot load 'no-such-release'"):
        SaeLensSource(release="no-such-release", id="x").load(roots)


def test_a_hub_model_is_pinned_to_the_commit_its_cache_knows(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--a--b/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("c" * 40 + "\n")
    hub = TransformersModel(id="a/b")
    assert hub.pinned(roots).revision == "c" * 40
    assert hub.identity(roots) == hub.pinned(roots).identity(roots)
    (refs / "main").write_text("not a commit")
    assert hub.identity(roots)["revision"] == "main"


def test_whatever_names_a_branch_is_pinned_however_deep(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for kind, commit in (("datasets", "d"), ("models", "e")):
        refs = tmp_path / f"{kind}--a--b/refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(commit * 40)
    problems = {"adapter": "huggingface", "id": "a/b"}
    rl = {"method": "rl", "layers": "all", "problems": problems}
    stack = StackMethod.model_validate({"method": "stack", "parts": [{"method": "none"}, rl]})
    pinned = stack.pinned(roots)
    assert pinned.parts[1].problems.revision == "d" * 40
    assert pinned.parts[0] is stack.parts[0]
    assert pinned.pinned(roots) is pinned
    scored = Autointerp.model_validate({"judge": {"adapter": "transformers", "id": "a/b"}})
    assert scored.pinned(roots).judge.revision == "e" * 40  # type: ignore[attr-defined]
    lexical = Autointerp()
    assert lexical.pinned(roots) is lexical


@pytest.mark.parametrize("fields", [{"context": 1}, {"documents": 0}, {"tokens": -1}, {"skip": -1}, {"trust": True}])
def test_every_dataset_refuses_senseless_options(fields: dict[str, Any]) -> None:
    for name, section in plugins("datasets").items():
        assert issubclass(section, DatasetAdapter)
        with pytest.raises(ValidationError, match=next(iter(fields))):
            section.model_validate(EXAMPLES[f"datasets/{name}"]().plain() | fields)


def test_no_adapter_has_an_option_to_trust_remote_code() -> None:
    for section in plugins("models").values():
        assert issubclass(section, ModelAdapter)
        assert not [field for field in section.model_fields if "trust" in field or "remote" in field]


# --- a real model --------------------------------------------------------------------------------------------------

REAL = Path(__file__).parents[3] / "shared/real"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real model is not here")
def test_a_real_model_predicts_real_text_better_than_chance() -> None:
    roots = Roots(REAL)
    model = TransformersModel(id="./stories260k")
    loaded = model.load(roots, CPU)
    text = next(iter(FilesDataset(path="text/tinystories.jsonl").texts(roots)))
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids[:, :128]
    facts = model.facts(roots)
    assert facts is not None
    loss = float(loaded.model(input_ids=ids, labels=ids).loss)
    assert loss < 0.5 * torch.tensor(float(facts.vocabulary)).log()
