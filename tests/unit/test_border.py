"""Whatever libraries of others raise, wherever they are used, is one sentence of ours; what ends a process stays what it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
import torch

from latentbench.activations.tokens import evaluation_tokens
from latentbench.core import hub
from latentbench.core.border import ENDING, contained, foreign, reason
from latentbench.core.errors import CellFailed, InvalidInput, LatentbenchError, NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.doctor.check import Check, run_checks
from latentbench.interventions.chat import asked
from latentbench.interventions.vectors import SteeringVectors, read_vectors, write_vectors
from latentbench.sae import artifact
from latentbench.sae.sources.tensors import read_safetensors, read_torch
from latentbench_adapters.datasets import FilesDataset, streamed_rows
from latentbench_adapters.judges.transformers import _answer
from latentbench_adapters.lm_eval import tasks
from latentbench_adapters.model_loading import hook_module, load_model, load_tokenizer
from latentbench_adapters.sae_lens.saes import from_disk, from_registry
from tests.support.upstream import LIBRARIES, made, panic, upstream

CPU = torch.device("cpu")
Call = Callable[[], object]


# -- the border itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_exception_of_a_library_becomes_one_sentence(library: str) -> None:
    classes = upstream()[library]
    assert classes or library in ("gguf", "lm_eval"), "they define none"
    for cls in classes:
        with pytest.raises(InvalidInput) as caught, foreign("the model 'x' cannot be loaded", "mend it"):
            raise made(cls)
        said = str(caught.value)
        assert said.startswith("the model 'x' cannot be loaded: ")
        assert said.endswith("; mend it")
        assert cls.__name__ in said
        assert "\n" not in said
        assert isinstance(contained(made(cls)), Exception)


def test_the_libraries_do_have_exceptions_to_map() -> None:
    counts = {library: len(classes) for library, classes in upstream().items()}
    assert counts["builtins"] > 40
    assert counts["huggingface_hub"] > 20
    assert counts["datasets"] > 10
    assert counts["httpx"] > 15
    assert counts["jinja2"] > 5
    assert counts["safetensors"] >= 1
    assert counts["pyarrow"] > 5


def test_a_panic_in_rust_is_no_exception_and_is_mapped_all_the_same() -> None:
    assert not isinstance(panic(), Exception)
    with pytest.raises(RefusedFile, match=r"^x: .*retry-limit-in-match over \(PanicException\)$"), foreign("x"):
        raise panic()
    kept = contained(panic())
    assert isinstance(kept, CellFailed)
    assert str(kept) == f"native code of a library gave up: {panic()} (PanicException)"


@pytest.mark.parametrize("ending", ENDING)
def test_what_ends_a_process_passes(ending: type[BaseException]) -> None:
    with pytest.raises(ending), foreign("x"):
        raise ending
    with pytest.raises(ending):
        contained(ending())


def test_our_own_errors_pass_as_they_are() -> None:
    for error in (RefusedFile("own"), CellFailed("own"), InvalidInput("own")):
        with pytest.raises(LatentbenchError) as caught, foreign("x", kind=NotAvailable):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), ImportError("x"), MemoryError(), torch.OutOfMemoryError("x")]
)
def test_what_is_lacking_is_not_blamed_on_the_file(error: Exception) -> None:
    with pytest.raises(NotAvailable), foreign("x"):
        raise error


def test_no_secret_and_no_control_character_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-token-42\n")
    texts = [
        "Illegal header value b'Bearer odd-token-42'",
        "Illegal header value b'Bearer never-heard-of'",
        "401 for hf_abcdefghijklmnop",
        "proxy http://me:never-heard-of@proxy.local:3128 refused",
        "x" * 290 + " hf_abcdefghijklmnop",
    ]
    for text in texts:
        said = reason(ValueError(text))
        assert "[secret]" in said or len(text) > 290
        assert not any(secret in said for secret in ("odd-token", "abcdef", "never-heard-of"))
    assert reason(ValueError("a\x1b[2J\u202eb")) == "a\\u001b[2J\\u202eb (ValueError)"
    assert len(reason(ValueError("word " * 10_000))) < 400
    assert reason(KeyError("hidden_act")) == "'hidden_act' (KeyError)"
    assert reason(MemoryError()) == "MemoryError"


def test_a_check_that_panics_has_failed_and_the_others_go_on() -> None:
    def breaks() -> Any:
        raise panic()

    found = list(run_checks([Check("breaks", "metrics", breaks), Check("breaks too", "metrics", breaks)]))
    assert [result.verdict for result in found] == ["fail", "fail"]


# -- the doors: every place where such a library is used ----------------------------------------------------------------


def _parquet(folder: Path) -> Call:
    arrow.parquet.write_table(arrow.table({"text": ["a"]}), folder / "x.parquet")
    return lambda: list(FilesDataset(path="x.parquet").texts(Roots(folder)))


def _state_dict(folder: Path) -> Call:
    torch.save({"a": torch.ones(1)}, folder / "x.pt")
    return lambda: read_torch(folder / "x.pt")


def _vectors(name: str) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        write_vectors(SteeringVectors({1: torch.ones(4)}), folder / name)
        return lambda: read_vectors(folder / name)

    return make


def _encoding(folder: Path) -> Call:
    def tokenizer(*_: Any, **__: Any) -> Any:
        return np.tokenizer_of_the_test()  # type: ignore[attr-defined]

    tokenizer.truncation_side = "left"  # type: ignore[attr-defined]
    return lambda: evaluation_tokens(["a b"], tokenizer, context=8)  # type: ignore[arg-type]


def _pinning(folder: Path) -> Call:
    def ask() -> str:
        hub._asked.cache_clear()
        return hub.resolved_commit("model", "nobody/nothing", None)

    return ask


def _scoring(folder: Path) -> Call:
    task = SimpleNamespace(
        task_name="sums", OUTPUT_TYPE="generate_until", _metric_fn_list={"acc": None}, _filters=[], instances=[]
    )
    problems = tasks.LmEvalProblems.__new__(tasks.LmEvalProblems)
    problems.task, problems.name = task, "sums"
    task.apply_filters = lambda: np.filters_of_the_test()  # type: ignore[attr-defined]
    return lambda: problems.scores([])


class _Templated(SimpleNamespace):
    """A tokenizer with a chat template."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, *_: Any, **__: Any) -> Any:
        return np.template_of_the_test()  # type: ignore[attr-defined]


def _asking(folder: Path) -> Call:
    judge = LanguageModel(SimpleNamespace(), _Templated(), CPU)  # type: ignore[arg-type]

    def ask() -> None:
        reply = _answer(judge, [{"role": "user", "content": "?"}], 4, graded=False)
        assert reply.text is None
        raise RefusedFile(reply.error)

    return ask


Folder = Callable[[Path], Call]
DOORS: dict[str, tuple[str, str, Folder]] = {
    "weights of a model": (
        "transformers:AutoModelForCausalLM", "from_pretrained", lambda m: lambda: load_model(str(m), None, "float32", CPU),
    ),
    "configuration of a model": (
        "transformers:AutoConfig", "from_pretrained", lambda m: lambda: load_model(str(m), None, "float32", CPU),
    ),
    "skeleton of a model": (
        "transformers:AutoModelForCausalLM", "from_config", lambda m: lambda: load_model(str(m), None, "float32", CPU),
    ),
    "tokenizer": ("transformers:AutoTokenizer", "from_pretrained", lambda m: lambda: load_tokenizer(str(m), None)),
    "tokenizer of the hub": (
        "transformers:AutoTokenizer", "from_pretrained", lambda m: lambda: load_tokenizer("nobody/nothing", None),
    ),
    "hook point": (
        "transformers:AutoModelForCausalLM", "from_config", lambda m: lambda: hook_module(str(m), None, Site(index=0)),
    ),
    "texts to tokens": ("numpy", "tokenizer_of_the_test", _encoding),
    "the hub": ("huggingface_hub:HfApi", "repo_info", _pinning),
    "datasets": ("datasets", "load_dataset", lambda m: lambda: list(streamed_rows("a/b", None, "train", "main"))),
    "Parquet": ("pyarrow.parquet", "ParquetFile", _parquet),
    "safetensors": ("latentbench.sae.sources.tensors", "load_file", lambda m: lambda: read_safetensors(m / "model.safetensors")),
    "state dict": ("torch", "load", _state_dict),
    "SAE of the registry": ("sae_lens:SAE", "from_pretrained", lambda m: lambda: from_registry("a", "b")),
    "SAE of sae-lens": ("sae_lens:SAE", "load_from_disk", lambda m: lambda: from_disk(m)),
    "SAE of ours": ("latentbench.sae.artifact", "load_file", lambda m: lambda: artifact._weights(m / "sae.safetensors")),
    "vectors": ("latentbench.interventions.vectors", "safe_open", _vectors("v.safetensors")),
    "GGUF": ("gguf", "GGUFReader", _vectors("v.gguf")),
    "lm-eval vectors": ("torch", "load", _vectors("v.pt")),
    "tasks": (
        "latentbench_adapters.lm_eval.tasks", "_made",
        lambda m: lambda: tasks.load("x.yaml", tasks.TaskOptions(), Roots(m), m, lambda: ""),
    ),
    "scoring": ("numpy", "filters_of_the_test", _scoring),
    "chat template": ("numpy", "template_of_the_test", _asking),
    "chat template of problems": ("numpy", "template_of_the_test", lambda m: lambda: asked(_Templated(), "?")),
}  # fmt: skip
"""Where the library's function is (module and class), its name, and our call that uses it, given a folder with a model."""


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, BaseException], None]]:
    def put(place: str, name: str, error: BaseException) -> None:
        module, _, cls = place.partition(":")
        owner = importlib.import_module(module)

        def broken(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(getattr(owner, cls) if cls else owner, name, broken, raising=False)

    yield put
    hub._asked.cache_clear()


@pytest.mark.parametrize("door", DOORS)
def test_nothing_foreign_comes_through_a_door(
    door: str, tmp_path: Path, tiny_model: Path, raising: Callable[[str, str, BaseException], None]
) -> None:
    place, name, make = DOORS[door]
    folder = tmp_path / "model"
    folder.symlink_to(tiny_model) if ":" in place else folder.mkdir()
    call = make(folder)
    for cls in (cls for classes in upstream().values() for cls in classes):
        raising(place, name, made(cls))
        with pytest.raises(LatentbenchError) as caught:
            call()
        assert "\n" not in str(caught.value), cls
        assert cls.__name__ in str(caught.value)
    for ending in ENDING:
        raising(place, name, ending())
        with pytest.raises(ending):
            call()


def test_a_silent_hub_is_told_whatever_its_client_raises(
    raising: Callable[[str, str, BaseException], None],
) -> None:
    for classes in upstream().values():
        for cls in classes:
            raising("huggingface_hub", "get_session", made(cls))
            assert cls.__name__ in str(hub.silence(1.0))
