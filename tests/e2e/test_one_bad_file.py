"""One bad file costs one row: cells that name it fail with a sentence, whatever computes them, and the others have numbers."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from tests.conftest import Command
from tests.support.project import EXPERIMENT, Workbench, documents, write_jsonl
from tests.support.ray import NEEDS_RAY, placed
from tests.support.saes import random
from tests.support.tiny import D_MODEL
from tests.support.upstream import ENDLESS, panic

WIDTH = 32
TOPK = {"variant": "topk", "width": WIDTH, "k": 4}
Json = dict[str, Any]


def _edit(file: str, change: Callable[[Json], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return edit


def _cut(file: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:keep])  # type: ignore[return-value]


def _splitting(pattern: str) -> Callable[[Json], object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda content: content.update(pre_tokenizer=split)


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "panics": (_edit("tokenizer.json", _splitting(ENDLESS)), "the tokenizer cannot encode texts, the first of which starts with"),
    "no_pattern": (_edit("tokenizer.json", _splitting("[")), "no_pattern' cannot be loaded"),
    "no_tokenizer": (_cut("tokenizer.json", 40), "no_tokenizer' cannot be loaded"),
    "no_activation": (
        _edit("config.json", lambda c: c.update(hidden_act="x")), "no_activation' cannot be loaded",
    ),
    "no_heads": (
        _edit("config.json", lambda c: c.update(num_key_value_heads=0)), "no_heads' cannot be loaded",
    ),
    "huge": (_edit("config.json", lambda c: c.update(head_dim=10**12)), "asks for a model of 257,000,000,003,120"),
    "other_shapes": (_edit("config.json", lambda c: c.update(intermediate_size=8)), "mlp.down_proj.weight is [16, 24], not [16, 8]"),
}  # fmt: skip
"""How a model folder is spoilt, in ways that are seen only when it is loaded or used, and what is said of it."""


def _spoilt(bench: Workbench, models: Iterable[str], saes: Iterable[str]) -> None:
    """Spoilt models and SAEs beside the sound ones, and a spec with a cell of each."""
    cases: list[Json] = [{"label": "sound", "sae": TOPK}]
    for name in models:
        MODELS[name][0](Path(shutil.copytree(bench.root / "model", bench.root / name)))
        cases.append({"label": name, "model": {"id": f"./{name}"}, "sae": TOPK})
    for name in saes:
        _sparsify(bench.root / "saes" / name)
        cases.append({"label": name, "sae": {"load": {"adapter": "sparsify", "path": f"saes/{name}"}}})
    if "torn" in saes:
        _cut("sae.safetensors", 300)(bench.root / "saes/torn")
    write_jsonl(bench.root / "data/train.jsonl", [*documents(80), "a" * 5000 + "c"])
    write_jsonl(bench.root / "data/eval.jsonl", ["a" * 5000 + "c", *documents(8, start=500)])
    spec = {name: value for name, value in EXPERIMENT.items() if name != "sae"} | {"cases": cases}
    bench.write("specs/mine.yaml", yaml.safe_dump(spec))


def _sparsify(folder: Path) -> None:
    rows = (WIDTH, D_MODEL)
    weights = random(encoder__weight=rows, encoder__bias=(WIDTH,), W_dec=rows, b_dec=(D_MODEL,))
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D_MODEL, "num_latents": WIDTH, "k": 4}))


SOUND = {"sound", "loaded"}
EXECUTORS = (
    "inline",
    pytest.param("local", marks=pytest.mark.slow),
    pytest.param("ray", marks=[pytest.mark.slow, NEEDS_RAY]),
)
"""Ten models are ten workers of `local` and `ray`, each of which imports torch anew."""


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_bad_file_costs_only_the_cells_that_name_it(bench: Workbench, command: Command, executor: str) -> None:
    models, saes = tuple(MODELS), ("loaded", "torn")
    _spoilt(bench, models, saes)
    done = command("run", *placed(executor), "--workers", "2", "--device", "cpu")
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    found = {record.label: record for record in bench.records().values()}
    assert found.keys() == {"sound", *models, *saes}
    assert {label for label, record in found.items() if record.status == "ok"} == SOUND
    assert found["sound"].metrics
    told = {label: record.error.message for label, record in found.items() if record.error}
    for name, message in told.items():
        assert (MODELS[name][1] if name in MODELS else "sae.safetensors cannot be read as safetensors") in message
        assert "\n" not in message
        assert len(message) < 600
    assert all(record.error.type in ("RefusedFile", "NotAvailable") for record in found.values() if record.error)
    logs = (bench.root / "results/logs").glob("*.log")
    assert not any("Traceback" in log.read_text() for log in logs)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("latentbench.sae.trainer:NativeTrainer", "step"),
        ("latentbench.sae.trainer:NativeTrainer", "finish"),
        ("latentbench.execute.training_stage:TrainingRunner", "_trainer"),
        ("latentbench.execute.job_runner:_Run", "_load"),
        ("latentbench.reconstruction.shared_pass:SiteStatistics", "_add_sae"),
        ("latentbench.execute.job_runner:_Run", "_score"),
    ],
)
def test_a_panic_costs_one_cell_wherever_it_happens(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    """Two SAEs of one group: all that is done for the first ends in a panic of some library's native code."""
    module, cls = place.split(":")
    owner = getattr(importlib.import_module(module), cls)
    real, first = getattr(owner, name), list[object]()

    def panicking(self: object, *given: Any) -> Any:
        whose = self if name in ("step", "finish") else getattr(given[0], "name", given[0])
        first.append(whose)
        if whose is first[0] or whose == first[0]:
            raise panic()
        return real(self, *given)

    bench.spec(matrix={"sae.k": [2, 4]})
    monkeypatch.setattr(owner, name, panicking)
    assert command("run", "--executor", "inline", "--device", "cpu").code == 3
    found = bench.records()
    assert sorted(record.status for record in found.values()) == ["failed", "ok"]
    (error,) = (record.error for record in found.values() if record.error)
    assert error.type == "Panicked"
    assert error.message.startswith("native code of a library gave up: ")


def test_an_absurd_configuration_is_refused_where_specs_are_validated(bench: Workbench, command: Command) -> None:
    for name, change in {
        "wide": {"hidden_size": 10**12}, "deep": {"num_hidden_layers": 10**9}, "true": {"vocab_size": True},
        "many": {"vocab_size": 10**6}, "tall": {"num_hidden_layers": 100},
    }.items():  # fmt: skip
        folder = Path(shutil.copytree(bench.root / "model", bench.root / name))
        _edit("config.json", lambda content, change=change: content.update(change))(folder)  # type: ignore[misc]
        bench.spec(name, model__id=f"./{name}")
    done = command("validate")
    assert done.code == 2
    assert [line.split(":")[0] for line in done.err.splitlines()[:-1]] == [
        f"specs/{name}.yaml" for name in ("deep", "many", "tall", "true", "wide")
    ]
    assert done.err.count("config.json says") == 5
    assert done.err.endswith("5 problems\n")
