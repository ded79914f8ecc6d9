"""Steering vectors from a spec: trained, killed, resumed, swept over scales, loaded, and refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentbench.interventions.vectors import SteeringVectors, read_vectors, write_vectors
from latentbench.steering.rl_training import CHECKPOINT_FILE, RlCheckpoint
from tests.conftest import Command, furnish
from tests.support.project import WORDS, Workbench
from tests.support.tiny import D_MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

RL: dict[str, Any] = {
    "method": "rl",
    "problems": {"adapter": "files", "path": "data/problems.jsonl"},
    "reward": "random",
    "steps": 4,
    "prompts": 4,
    "samples": 3,
    "max_new_tokens": 5,
    "selection": 0,
    "select_every": 2,
}
RUN = ("run", "mine", "--device", "cpu")


def write(bench: Workbench, steering: Any, **more: Any) -> None:
    rows = [{"question": f"{WORDS[i % 20]} {WORDS[(3 * i) % 20]}", "answer": i} for i in range(30)]
    bench.write("data/problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": {"adapter": "transformers", "id": "./model"},
        "dataset": {"eval": {"lab": {"adapter": "files", "path": "data/eval.jsonl", "documents": 6, "context": 16}}},
        "steering": steering,
        "metrics": [{"capability_cost": {"scales": [0, 1]}}],
        **more,
    }
    bench.write("specs/mine.yaml", yaml.safe_dump(spec, sort_keys=False))


def subjects(bench: Workbench) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that was made, by its place in the store."""
    folder = bench.root / "results/store/objects/subject"
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def same(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[file].keys() == b[file].keys() and all(torch.equal(tensor, b[file][name]) for name, tensor in a[file].items())
        for file in a
    )


def test_a_training_that_broke_goes_on_and_a_sweep_of_scales_trains_once(
    bench: Workbench, command: Command, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, RL, matrix={"steering.scale": [1.0, 0.5]})
    save = RlCheckpoint.save
    saved: list[int] = []

    def break_once(self: RlCheckpoint, folder: Path) -> None:
        save(self, folder)
        saved.append(self.step)
        if saved == [1, 2]:
            raise RuntimeError("a fault on purpose")

    monkeypatch.setattr(RlCheckpoint, "save", break_once)
    assert command(*RUN, "--executor", "inline").code == 3  # one cell failed; the other went on with its training
    again = command(*RUN, "--executor", "inline")
    assert again.code == 0, again.err
    assert saved == [1, 2, 3, 4]  # no step twice, and no training of its own for the other scale
    assert len(bench.records()) == 2
    other = furnish(tmp_path / "undisturbed", tiny_model)
    write(other, RL)
    monkeypatch.chdir(other.root)
    assert command(*RUN, "--executor", "inline").code == 0
    assert saved[4:] == [1, 2, 3, 4]
    assert same(subjects(bench), subjects(other))
    assert not list((bench.root / "results/store").rglob(CHECKPOINT_FILE))


@pytest.mark.slow
def test_kill_9_in_mid_training_changes_no_bit(tmp_path: Path, tiny_model: Path) -> None:
    benches = [furnish(tmp_path / name, tiny_model) for name in ("killed", "undisturbed")]
    for bench in benches:
        write(bench, {**RL, "steps": 40})
    killed, undisturbed = benches
    process = killed.start(*RUN, "--executor", "inline")
    while not list((killed.root / "results/store").rglob(CHECKPOINT_FILE)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not subjects(killed)
    for bench in benches:
        done = bench.process(*RUN, "--executor", "inline")
        assert done.code == 0, done.err
    assert same(subjects(killed), subjects(undisturbed))


@pytest.mark.parametrize("name", ["v.safetensors", "v.gguf", "v.pt"])
def test_vectors_of_others_are_used(bench: Workbench, command: Command, name: str) -> None:
    write_vectors(SteeringVectors({1: torch.ones(D_MODEL)}), bench.root / "data" / name)
    write(bench, {"method": "load", "path": f"data/{name}"})
    done = command(*RUN, "--executor", "inline")
    assert done.code == 0, done.err


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".pt"])
def test_vectors_leave_the_store_as_files_that_load_again(bench: Workbench, command: Command, suffix: str) -> None:
    write(bench, {"method": "random", "norm": 2.0, "scale": 0.5, "layers": [1], "scope": "generated"})
    assert command(*RUN, "--executor", "inline").code == 0
    target = bench.root / f"data/out{suffix}"
    done = command("export-vectors", "mine", "--output", str(target))
    assert done.code == 0, done.err
    assert "'generated' only" in done.out
    vectors = read_vectors(target)
    assert vectors.layers == (1,)
    assert float(vectors.vectors[1].norm()) == pytest.approx(1.0)
    assert command("export-vectors", "mine", "--output", str(target)).code == 2  # nothing is overwritten
    write(bench, {"method": "load", "path": f"data/out{suffix}"})
    assert command(*RUN, "--executor", "inline").code == 0


def test_wrong_vectors_are_refused_in_one_line(bench: Workbench, command: Command) -> None:
    write_vectors(SteeringVectors({1: torch.ones(D_MODEL + 1)}), bench.root / "data/wide.gguf")
    write_vectors(SteeringVectors({9: torch.ones(D_MODEL)}), bench.root / "data/deep.gguf")
    SteeringVectors({1: torch.ones(D_MODEL)}, {"hub": "other/model"}).save(bench.root / "data/other.safetensors")
    trace = bench.root / "executed"
    (bench.root / "data/evil.pt").write_bytes(pickle.dumps(Malicious(trace)))
    for file, message in {
        "wide.gguf": f"{D_MODEL + 1} wide",
        "deep.gguf": "layer 9",
        "other.safetensors": "another model or revision",
        "evil.pt": "not unpickled",
        "absent.pt": "no file",
    }.items():
        write(bench, {"method": "load", "path": f"data/{file}"})
        done = command(*RUN, "--executor", "inline")
        said = done.out + done.err
        assert done.code != 0
        assert message in " ".join(said.split()), said
        assert "Traceback" not in said
    assert not trace.exists()


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
