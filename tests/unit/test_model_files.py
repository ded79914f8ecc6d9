"""A model folder is every file that transformers may read from it: what differs in one of them is another model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.hashing import digest
from latentbench.core.paths import Roots
from latentbench_adapters import model_files
from latentbench_adapters.model_files import folder_facts, folder_identity
from latentbench_adapters.model_loading import load_model, load_tokenizer
from latentbench_adapters.pocket.adapter import PocketModel
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.opened import opened_below
from tests.support.tokenizers import KINDS

CPU = torch.device("cpu")
NOT_READ = (
    "README.md",
    "README",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
    ".gitattributes",
    ".git/config",
    ".cache/huggingface/x.metadata",
    "loss.png",
    "modeling_mine.py",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "model-q4.gguf",
    "optimizer.pt",
    "training_args.bin",
    "trainer_state.json",
    "eval_results.json",
    "events.out.tfevents.17.host",
    "checkpoint-500/model.safetensors",
    "onnx/model.onnx",
)


def save_model(folder: Path) -> None:
    """Weights in several shards with their index, configuration and generation settings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model with a tokenizer of the kind, made once."""
    root = tmp_path_factory.mktemp("models")

    def made(kind: str) -> Path:
        folder = root / kind.replace(" ", "_")
        if not folder.exists():
            if kind.endswith(".model"):
                pytest.importorskip("sentencepiece")
            KINDS[kind](folder)
            save_model(folder)
        return folder

    return made


@pytest.fixture
def folder(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of one of them that may be changed."""
    return Path(shutil.copytree(folders("templates"), tmp_path / "model"))


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def key(folder: Path) -> str:
    """The model's part of every key."""
    return digest("model", TransformersModel(id=str(folder)).identity(Roots(folder.parent)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_is_saved_counts_and_its_bytes_are_in_the_key(
    kind: str, folders: Callable[[str], Path]
) -> None:
    folder = folders(kind)
    before = key(folder)
    identity = folder_identity(folder)
    assert identity.keys() == written(folder)
    for name in identity:
        path, content = folder / name, (folder / name).read_bytes()
        assert identity[name] == hashlib.sha256(content).hexdigest()
        path.write_bytes(content + b" ")
        assert key(folder) != before, name
        path.write_bytes(content)
    assert key(folder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_opened_that_does_not_count(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders(kind), tmp_path / "model"))
    for name in NOT_READ:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not what it says")
    with opened_below(folder) as names:
        load_model(str(folder), None, "float32", CPU)
    assert "config.json" in names
    assert names <= folder_identity(folder).keys()


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_never_read_changes_no_key(name: str, folder: Path) -> None:
    before = key(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"anything")
    assert key(folder) == before


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja", "generation_config.json"),
        *("added_tokens.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
        *("tokenizer.model", "sentencepiece.bpe.model", "source.spm", "bpe.codes", "qwen.tiktoken", "tekken.json"),
        *("tokenizer.5.0.0.json", "config.4.0.0.json", "processor_config.json", "preprocessor_config.json"),
        *("video_preprocessor_config.json", "audio_tokenizer_config.json", "quantize_config.json", "dict.txt"),
    ],
)
def test_a_file_more_that_may_be_read_is_another_model(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    keys = [key(folder)]
    for content in (b"{}", b"{ }"):
        (folder / name).write_bytes(content)
        keys.append(key(folder))
    assert len(set(keys)) == 3


def test_a_chat_template_that_changes_what_the_model_sees_changes_the_key(folder: Path) -> None:
    chat: Any = [{"role": "user", "content": "rain"}]
    asked, keys = [], []
    for template in ("{{ messages[0]['content'] }}", "Q: {{ messages[0]['content'] }}"):
        (folder / "chat_template.jinja").write_text(template)
        asked.append(load_tokenizer(str(folder), None).apply_chat_template(chat, tokenize=False))
        keys.append(key(folder))
    assert asked == ["rain", "Q: rain"]
    assert keys[0] != keys[1]


def test_folders_of_the_files_that_always_counted_keep_their_key(folders: Callable[[str], Path]) -> None:
    folder = folders("bpe")
    once = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*")
    old = {path.name: path for pattern in once for path in folder.glob(pattern)}
    old_identity = {name: hashlib.sha256(old[name].read_bytes()).hexdigest() for name in sorted(old)}
    (folder / "model.safetensors.index.json").rename(folder.parent / "index")
    try:
        assert folder_identity(folder) == old_identity
    finally:
        (folder.parent / "index").rename(folder / "model.safetensors.index.json")


def test_the_pocket_models_identity_is_what_it_always_was() -> None:
    identity = PocketModel().identity(Roots(Path("/nowhere")))
    assert digest("model", identity).startswith("b9807bdc3b843092")


def test_a_link_counts_by_what_it_points_to(folder: Path) -> None:
    before = key(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        blob = folder.parent / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(blob)
    assert key(folder) == before
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(folder / "nowhere")
    assert "generation_config.json" not in folder_identity(folder)


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _shard(folder: Path, name: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../other/x.safetensors", "/etc/passwd", "pytorch_model.bin", "sub/x.safetensors"])
@pytest.mark.parametrize(
    ("file", "tell"),
    [
        ("model.safetensors.index.json", _shard),
        ("config.json", lambda folder, name: edited(folder / "config.json", transformers_weights=name)),
        (
            "tokenizer_config.json",
            lambda folder, name: edited(folder / "tokenizer_config.json", fast_tokenizer_files=[name]),
        ),
        (
            "config.json",
            lambda folder, name: edited(folder / "config.json", text_config={"transformers_weights": name}),
        ),
    ],
    ids=["index", "configuration", "tokenizer", "text configuration"],
)
def test_a_folder_that_reads_beyond_its_own_files_is_refused(
    file: str, tell: Callable[[Path, str], None], name: str, folder: Path
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    tell(folder, name)
    with pytest.raises(RefusedFile, match=rf"{file} names '.*{Path(name).name}', which is not among"):
        folder_identity(folder)


def test_an_index_that_is_not_read_may_name_what_it_likes(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: t for shard in folder.glob("model-*.safetensors") for name, t in load_file(shard).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _shard(folder, "gone.safetensors")
    assert "model.safetensors" in folder_identity(folder)
    load_model(str(folder), None, "float32", CPU)


def test_an_adapter_beside_the_model_is_refused_before_and_when_loaded(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(target_modules=["q_proj"], r=2)
    )
    adapted.save_pretrained(folder)
    with pytest.raises(RefusedFile, match="holds an adapter"):
        folder_identity(folder)
    with pytest.raises(RefusedFile, match="merge it into its model"):
        load_model(str(folder), None, "float32", CPU)


def test_a_configuration_for_another_version_is_refused(folder: Path) -> None:
    edited(folder / "config.json", configuration_files=["config.4.0.0.json"])
    with pytest.raises(RefusedFile, match="save it anew"):
        TransformersModel(id=str(folder)).facts(Roots(folder.parent))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(NotAvailable, match="convert them first"):
        folder_identity(folder)


def test_a_change_within_one_tick_of_the_clock_is_seen(folder: Path) -> None:
    """The same size and the same time: only what changed a while ago may be told by them."""
    config = folder / "config.json"
    text, now = config.read_text("utf-8"), time.time_ns()
    seen = []
    for layers in (1, 2):
        config.write_text(re.sub(r'("num_hidden_layers": )\d', rf"\g<1>{layers}", text), "utf-8")
        os.utime(config, ns=(now, now))
        seen.append(folder_facts(folder).layers)
    assert seen == [1, 2]


def test_a_folder_that_stays_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1.0, 1.0))
    known = folder_facts(folder)
    monkeypatch.setattr(model_files, "read_json", lambda path: {})
    assert folder_facts(folder) == known
    os.utime(folder / "config.json", (2.0, 2.0))
    with pytest.raises(RefusedFile):
        folder_facts(folder)
