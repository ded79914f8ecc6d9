"""No foreign code and no file of others, whichever way: each attack leaves a trace where it works, and none does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbench.core.errors import LatentbenchError, RefusedFile
from latentbench.core.hub import check_dataset
from latentbench.core.paths import Roots
from latentbench.distributed.worker_process import Limits, WorkerFailure, WorkerProcess
from latentbench.execute.cell_record import _run
from latentbench.sae.sources.native import NativeSource
from latentbench_adapters.datasets import HuggingFaceDataset, streamed_rows
from latentbench_adapters.model_files import check_model_folder, refuse_adapter, refuse_kernels
from latentbench_adapters.problems import HuggingFaceProblems
from latentbench_adapters.sparsify import SparsifySource
from latentbench_adapters.transformers_model import TransformersModel
from tests.conftest import Command
from tests.support.project import Workbench

REFUSED = (LatentbenchError, ValueError)
"""What `validate` says at its place in the spec."""
Change = Callable[[Path], None]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that whatever is run would write."""
    return tmp_path / "canary"


@pytest.fixture
def folder(bench: Workbench) -> Path:
    """A model's folder in a project."""
    return bench.root / "model"


def evil(canary: Path) -> str:
    """Python that leaves a trace."""
    return f"open({str(canary)!r}, 'a').write(__name__)\nclass C: pass\ndef generate(*a, **k): pass\n"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def load(folder: Path) -> None:
    """As a cell would: what it is, then the model with its tokenizer."""
    model, roots = TransformersModel(id="./model"), Roots(folder.parent)
    model.identity(roots)
    model.facts(roots)
    model.load(roots, torch.device("cpu"))


# -- code in a model's folder ----------------------------------------------------------------------------------------


def config_map(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"})


def unknown_kind(folder: Path) -> None:
    config_map(folder)
    edit(folder / "config.json", model_type="evil")


def tokenizer_map(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.C", "evil.C"]}, tokenizer_class="Evil")


def custom_generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate/generate.py")
    edit(folder / "generation_config.json", custom_generate="./custom_generate")


def adapter(folder: Path) -> None:
    """peft imports the module that an adapter's configuration names."""
    core = folder.parent / "megatron/core.py"
    core.parent.mkdir()
    shutil.copy(folder / "evil.py", core)
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 2}
    edit(folder / "adapter_config.json", **lora, megatron_config={"a": 1}, megatron_core="megatron.core")


def pickled_weights(folder: Path) -> None:
    """What a pickle would run: exec(open('evil.py').read())."""
    source = f"exec(open({str(folder / 'evil.py')!r}).read())"
    (folder / "adapter_model.bin").write_bytes(b"cbuiltins\nexec\n(V" + source.encode() + b"\ntR.")
    edit(folder / "config.json", transformers_weights="adapter_model.bin")


def only_pickled(folder: Path) -> None:
    pickled_weights(folder)
    edit(folder / "config.json", transformers_weights=None)
    (folder / "adapter_model.bin").rename(folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def distributed_pickle(folder: Path) -> None:
    pickled_weights(folder)
    edit(folder / "config.json", transformers_weights=None)
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    (folder / "adapter_model.bin").rename(folder / ".metadata")


def quantised(folder: Path) -> None:
    kind = {"default": {"_type": "evil.C", "_data": {}, "_version": 1}}
    edit(folder / "config.json", quantization_config={"quant_method": "torchao", "quant_type": kind})


RUNNING: list[Change] = [
    config_map,
    unknown_kind,
    tokenizer_map,
    custom_generate,
    adapter,
    pickled_weights,
    only_pickled,
    distributed_pickle,
    quantised,
]


@pytest.mark.parametrize("attack", RUNNING, ids=lambda attack: attack.__name__)
def test_nothing_in_a_models_folder_is_run(
    folder: Path, canary: Path, attack: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text(evil(canary))
    (folder.parent / "evil.py").write_text(evil(canary))
    attack(folder)
    monkeypatch.chdir(folder.parent)
    monkeypatch.syspath_prepend(str(folder.parent))
    with suppress(LatentbenchError):  # some are refused, some have no use for the code
        load(folder)
    assert not canary.exists()


def test_an_adapter_would_have_run(folder: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack is real: transformers alone imports what the adapter names."""
    from transformers import AutoModelForCausalLM

    (folder / "evil.py").write_text(evil(canary))
    adapter(folder)
    monkeypatch.syspath_prepend(str(folder.parent))
    with pytest.raises(AttributeError):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    assert canary.exists()
    for name in ("megatron", "megatron.core"):
        sys.modules.pop(name, None)


def test_adapters_are_refused_also_where_only_the_hub_has_them(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="/etc")
    with pytest.raises(RefusedFile, match="merge it into its model"):
        refuse_adapter(str(folder), None)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("nested", [False, True])
def test_kernels_of_the_hub_are_refused_by_name(folder: Path, key: str, nested: bool) -> None:
    edit(folder / "config.json", **({"text_config": {key: "evil/kernel"}} if nested else {key: "evil/kernel"}))
    with pytest.raises(RefusedFile, match="is a kernel of the hub"):
        TransformersModel(id="./model").identity(Roots(folder.parent))


def test_kernels_of_the_hub_cannot_be_fetched(folder: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `kernels` were installed and the hub within reach: first the attack, then the guard."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import hub_kernels

    def fetch(*_: Any, **__: Any) -> None:
        canary.write_text("run")
        raise RuntimeError("the kernel was run")

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_, **__: True)
    monkeypatch.setitem(vars(hub_kernels), "get_kernel_hub", fetch)
    edit(folder / "config.json", _attn_implementation="evil/kernel")
    if hub_kernels.get_kernel.__module__ == hub_kernels.__name__:  # no model was loaded in this process yet
        with pytest.raises(ValueError, match="was run"):
            AutoModelForCausalLM.from_pretrained(folder)
        assert canary.exists()
        canary.unlink()
    refuse_kernels()
    with pytest.raises(ValueError, match="is code and is not run"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert not canary.exists()


def test_chat_templates_are_rendered_within_bounds(folder: Path) -> None:
    from jinja2 import TemplateError

    tokenizer = TransformersModel(id="./model").load_tokenizer(Roots(folder.parent))
    asked = [{"role": "user", "content": "hello"}]
    for template in (
        "{{ 'x' * 10**10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ):
        with pytest.raises(TemplateError, match="asks for too much"):
            tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False)
    usual = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] + '\\n' }}{% endfor %}{{ bos_token ~ '!' }}"
    said = tokenizer.apply_chat_template(asked, chat_template=usual, tokenize=False)
    assert str(said).startswith("<|user|>hello\n")


# -- files of others through a model's folder ------------------------------------------------------------------------


def linked_weights(folder: Path) -> None:
    _moved(folder / "model.safetensors")


def linked_config(folder: Path) -> None:
    _moved(folder / "config.json")


def linked_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/x.jinja").symlink_to("/etc/hostname")


def linked_folder(folder: Path) -> None:
    (folder / "additional_chat_templates").symlink_to("/etc")


def index_elsewhere(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    elsewhere = _moved(folder / "model.safetensors", link=False)
    shutil.copy(elsewhere, folder / "other.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, f"../../outside/{elsewhere.name}")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tokenizer_elsewhere(folder: Path) -> None:
    elsewhere = _moved(folder / "tokenizer.json", link=False)
    versioned = elsewhere.rename(elsewhere.with_name("tokenizer.4.0.0.json"))
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=[f"../../outside/{versioned.name}"])


def tokenizer_file_elsewhere(folder: Path) -> None:
    elsewhere = _moved(folder / "tokenizer.json", link=False)
    edit(folder / "tokenizer_config.json", tokenizer_file=str(elsewhere))


def weights_elsewhere(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="../../outside/x.safetensors")


def _moved(path: Path, link: bool = True) -> Path:
    outside = path.parents[2] / "outside"
    outside.mkdir(exist_ok=True)
    elsewhere = Path(shutil.move(path, outside / path.name))
    if link:
        path.symlink_to(elsewhere)
    return elsewhere


ELSEWHERE: list[Change] = [
    linked_weights,
    linked_config,
    linked_templates,
    linked_folder,
    index_elsewhere,
    tokenizer_elsewhere,
    tokenizer_file_elsewhere,
    weights_elsewhere,
]


@pytest.mark.parametrize("attack", ELSEWHERE, ids=lambda attack: attack.__name__)
def test_a_models_folder_leads_nowhere_else(bench: Workbench, command: Command, folder: Path, attack: Change) -> None:
    attack(folder)
    with pytest.raises(REFUSED):
        load(folder)
    bench.spec()
    done = command("validate")
    assert done.code == 2
    assert "model" in done.err
    assert "Traceback" not in done.err


def test_links_are_followed_where_they_are_allowed(folder: Path) -> None:
    linked_weights(folder)
    allowed = Roots(folder.parent, (folder.parents[1] / "outside",))
    TransformersModel(id="./model").load(allowed, torch.device("cpu"))


def test_the_hubs_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    """A snapshot may be named by its path: its files are links to the blobs of the same repository."""
    repository = tmp_path / "cache/models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    roots = Roots(folder.parent, (snapshot,))
    TransformersModel(id=str(snapshot)).load(roots, torch.device("cpu"))
    (snapshot / "extra.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link that leads outside"):
        check_model_folder(snapshot, roots)


def test_what_the_hubs_cache_holds_is_checked_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    snapshot = tmp_path / "hub/models--owner--name/snapshots" / commit
    shutil.copytree(folder, snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    model = TransformersModel(id="owner/name", revision=commit)
    assert model._source(Roots(folder.parent)) == "owner/name"
    edit(snapshot / "config.json", _attn_implementation="evil/kernel")
    with pytest.raises(RefusedFile, match="kernel of the hub"):
        model.load(Roots(folder.parent), torch.device("cpu"))


@pytest.mark.parametrize("source", [NativeSource, SparsifySource])
def test_links_in_saes_lead_nowhere_else(tmp_path: Path, source: type[Any]) -> None:
    sae, secret = tmp_path / "project/sae", tmp_path / "secret"
    sae.mkdir(parents=True)
    secret.write_text("{}")
    for name in ("sae.safetensors", "sae.json", "cfg.json"):
        (sae / name).symlink_to(secret)
    with pytest.raises(ValueError, match="link that leads outside"):
        source(path="sae").identity(Roots(tmp_path / "project"))


def test_links_in_an_sae_that_another_stands_on_lead_nowhere_else(tmp_path: Path) -> None:
    sae = tmp_path / "project/sae"
    (sae / "base0/base0").mkdir(parents=True)
    for folder, bases in ((sae, ["x"]), (sae / "base0", ["x"]), (sae / "base0/base0", [])):
        (folder / "sae.json").write_text(json.dumps({"d_in": 4, "bases": bases}))
        (folder / "sae.safetensors").write_bytes(b"")
    (sae / "base0/base0/sae.safetensors").unlink()
    (tmp_path / "secret").write_bytes(b"")
    (sae / "base0/base0/sae.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link that leads outside"):
        NativeSource(path="sae").identity(Roots(tmp_path / "project"))


# -- datasets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["owner/name", "wikitext", "json", "pandas", "generator"])
def test_a_hub_id_is_no_folder_and_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`datasets` would read a folder of that name, which may lead anywhere, or whatever lies in the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "wikitext").mkdir()
    (tmp_path / "owner/name/README.md").write_text("---\nconfigs: [{config_name: a, data_files: /etc/passwd}]\n---\n")
    for section in (HuggingFaceDataset(id=name), HuggingFaceProblems(id=name)):
        with pytest.raises(RefusedFile):
            section.identity(Roots(tmp_path))
    with pytest.raises(RefusedFile):
        next(streamed_rows(name, None, "train", "main"))


def test_hub_ids_that_are_nothing_else_pass(tmp_path: Path) -> None:
    for name in ("owner/name", "owner/json", "wikitext"):
        check_dataset(name, tmp_path)


def test_a_models_hub_id_is_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "here/owner/name").mkdir(parents=True)
    edit(tmp_path / "here/owner/name/adapter_config.json", base_model_name_or_path="/etc")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RefusedFile, match="rename"):
        TransformersModel(id="owner/name").folder(Roots(tmp_path / "project"))


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "{}",
        "${}$",
        r"\boxed{{{}}}",
        "answer: (1)*{}",
        r"$\text{{{}}}$",
        r"$\operatorname{{{}}}$",
        r"$x_{{{}}}$",
        "1+{}",
    ],
)
def test_what_a_model_answers_is_parsed_and_not_run(canary: Path, written: str) -> None:
    """math-verify hands what looks like an expression to a parser that evaluates Python."""
    from math_verify import parse

    parse(written.format(f"__import__('os').system('touch {canary}')"))
    assert not canary.exists()


# -- processes -------------------------------------------------------------------------------------------------------


def test_workers_import_nothing_from_the_current_folder(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "numpy", "pydantic", "typer", "json"):
        (tmp_path / f"{name}.py").write_text(evil(canary))
    unsafe = [sys.executable, "-m", "latentbench.execute.worker", "no.json"]
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    subprocess.run(unsafe, capture_output=True, check=False, timeout=60)
    assert canary.exists()  # the attack is real
    canary.unlink()
    worker = WorkerProcess(tmp_path / "no.json", tmp_path / "log", Limits(threads=1))
    worker.process.wait(60)
    assert isinstance(worker.loss, WorkerFailure)
    assert not canary.exists()


def test_git_starts_no_watcher(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "watch").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (tmp_path / "watch").chmod(0o755)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "config", "core.fsmonitor", str(tmp_path / "watch")], check=True)
    subprocess.run([*git, "status"], capture_output=True, check=True)
    assert canary.exists()  # the attack is real
    canary.unlink()
    assert _run(tmp_path, "status", "--porcelain") is not None
    assert not canary.exists()
