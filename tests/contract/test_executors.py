"""Every executor keeps one contract: the same records, failures that cost only themselves, the same exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command, furnish
from tests.support.project import Workbench, documents, numbers, run, write_jsonl
from tests.support.ray import NEEDS_RAY, placed

EXECUTORS = ("inline", "local", pytest.param("ray", marks=NEEDS_RAY))
MOSTLY_INLINE = (
    "inline",
    pytest.param("local", marks=pytest.mark.slow),
    pytest.param("ray", marks=[pytest.mark.slow, NEEDS_RAY]),
)
"""Every worker of `local` and `ray` imports torch anew; what all executors share is tried there in the slow run."""
MATRIX = {"sae.k": [2, 4]}
SPLIT = [{"cross_entropy": {"budgets": [1]}}, "explained_variance", "l0"]


def results(bench: Workbench) -> dict[str, Any]:
    return {name: numbers(record) for name, record in bench.records().items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workbench:
    """Two SAEs and two seeds computed inline."""
    bench = furnish(tmp_path_factory.mktemp("reference") / "project", tiny_model)
    bench.spec(matrix=MATRIX, metrics=SPLIT, seeds=[0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bench.root)
        assert run(["run", "--executor", "inline", "--device", "cpu"]) == 0
    return bench


@pytest.mark.parametrize("workers", ["1", pytest.param("3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("executor", EXECUTORS[1:])
def test_others_write_what_inline_writes_whatever_the_number_of_workers(
    bench: Workbench, command: Command, reference: Workbench, executor: str, workers: str
) -> None:
    bench.spec(matrix=MATRIX, metrics=SPLIT, seeds=[0, 1])
    assert command("run", *placed(executor), "--workers", workers, "--device", "cpu").code == 0
    assert results(bench) == results(reference)
    assert len(results(bench)) == 4
    assert bench.weights() == reference.weights()


@pytest.mark.parametrize("executor", MOSTLY_INLINE)
def test_a_cell_alone_writes_what_it_writes_in_a_group(
    bench: Workbench, command: Command, reference: Workbench, executor: str
) -> None:
    bench.spec(matrix={"sae.k": [4]}, metrics=SPLIT, seeds=[1])
    assert command("run", *placed(executor), "--device", "cpu").code == 0
    (alone,) = results(bench).values()
    assert {**alone, "spec": None} == {**results(reference)["mine[sae.k=4][1]"], "spec": None}


def test_a_cell_without_splicing_writes_the_same_beside_one_that_splices(bench: Workbench, command: Command) -> None:
    run = ("run", "--executor", "inline", "--device", "cpu", "--workers", "1")
    plain = {"label": "plain", "metrics": ["explained_variance"]}
    bench.spec("alone", cases=[plain])
    assert command(*run, "alone", "--results", "alone").code == 0
    bench.spec("together", cases=[plain, {"label": "spliced"}])
    assert command(*run, "together", "--results", "together").code == 0
    alone, together = (
        next((bench.root / place / "records" / place).glob("plain*.safetensors")) for place in ("alone", "together")
    )
    assert alone.name == together.name
    assert alone.read_bytes() == together.read_bytes()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_cell_that_cannot_be_computed_costs_only_itself(bench: Workbench, command: Command, executor: str) -> None:
    write_jsonl(bench.root / "data/short.jsonl", documents(2))
    bench.write("data/broken.jsonl", '{"text": "ore salt acid"}\nnot json\n')
    cases = [
        {"label": "sound"},
        {"label": "short", "dataset": {"train": {"path": "data/short.jsonl"}}},
        {"label": "broken", "dataset": {"eval": {"lab": {"path": "data/broken.jsonl"}}}},
        {"label": "wild", "training": {"lr": 1e38, "gradient_clip": None}},
    ]
    bench.spec(cases=cases)
    done = command("run", *placed(executor), "--device", "cpu")
    assert done.code == 3
    found = {record.label: record for record in bench.records().values()}
    assert {label: record.status for label, record in found.items()} == {
        "sound": "ok",
        "short": "failed",
        "broken": "failed",
        "wild": "failed",
    }
    told = {label: (r.error.stage, r.error.type, r.error.message) for label, r in found.items() if r.error}
    assert told["short"][:2] == ("train", "InvalidInput")
    assert told["broken"][:2] == ("measure", "RefusedFile")
    assert "broken.jsonl:2: not JSON" in told["broken"][2]
    assert told["wild"][:2] == ("train", "CellFailed")
    for label in ("short", "broken", "wild"):
        assert f"no numbers mine[{label}][seed=0]: failed: {told[label][0]}" in " ".join(done.err.split())
        assert found[label].metrics == ()
    for record in found.values():
        log = record.error and record.error.log
        assert (log is not None) == (executor != "inline" and record.status != "ok"), "a worker's log is named"
        if log:
            assert done.err.count(f"(log: results/{log})") >= 1
            assert (bench.root / "results" / log).is_file()


@pytest.mark.parametrize("executor", MOSTLY_INLINE)
def test_a_second_run_computes_nothing_and_a_mended_one_only_what_was_missing(
    bench: Workbench, command: Command, executor: str
) -> None:
    bench.write("data/eval2.jsonl", "not json\n")
    lab, other = (
        {"adapter": "files", "path": f"data/{f}.jsonl", "documents": 4, "context": 16} for f in ("eval", "eval2")
    )
    bench.spec("good", dataset__eval={"lab": lab})
    bench.spec("bad", dataset__eval={"lab": other})
    run = ("run", *placed(executor), "--device", "cpu")
    assert command(*run).code == 3
    before = bench.records()["good[][0]"]
    write_jsonl(bench.root / "data/eval2.jsonl", documents(5, start=900))
    done = command(*run, "--json")
    assert done.code == 0
    assert {c["cell"]: c["reused"] for c in json.loads(done.out)["cells"]} == {
        "bad[seed=0]": False,
        "good[seed=0]": True,
    }
    assert bench.records()["good[][0]"] == before
    assert len(bench.weights()) == 1, "both cells trained the same SAE"
    assert command(*run, "--json").code == 0
    assert command("status").code == 0


@pytest.mark.parametrize("executor", MOSTLY_INLINE)
def test_a_damaged_artifact_is_made_again(bench: Workbench, command: Command, executor: str) -> None:
    bench.spec()
    run = ("run", *placed(executor), "--device", "cpu")
    assert command(*run).code == 0
    before, weights = results(bench), bench.weights()
    (file,) = (bench.root / "results/store/objects/sae").glob("*/*/sae.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    bench.spec(metrics=["explained_variance", "cross_entropy", "mse"])
    for path in (bench.root / "results/store/objects/measurement").glob("*/*/*"):
        path.unlink()
    assert command(*run).code == 0
    assert bench.weights() == weights
    old, new = next(iter(before.values()))["metrics"], next(iter(results(bench).values()))["metrics"]
    assert {json.dumps(m, sort_keys=True) for m in old} <= {json.dumps(m, sort_keys=True) for m in new}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_invalid_input_runs_nothing_and_exits_with_2(bench: Workbench, command: Command, executor: str) -> None:
    bench.spec(sae__k="many")
    for arguments in (("run",), ("run", "--device", "cuda:99"), ("run", "absent"), ("run", "--executor", "no")):
        assert command(*arguments, *(placed(executor) if "--executor" not in arguments else ())).code == 2
    assert bench.records() == {}
