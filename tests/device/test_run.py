"""A spec on this device, from texts to its record: the numbers of a CPU, and after an interruption the bytes of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentbench.sae.trainer import NativeTrainer
from tests.conftest import furnish
from tests.support.project import Workbench, run

TOLERANCE = 1e-3
"""Of explained variances and the model's own cross-entropy, in float32 after 16 steps: between two implementations of the
products on one CPU they differ by 3·10⁻⁵, since Adam makes steps of full size of gradients that are all rounding."""
COMPARED = ("explained_variance", "cross_entropy.clean")
"""Not what is divided by a cross-entropy that this model, with random weights, hardly changes."""
SPEC: dict[str, Any] = {
    "matrix": {"sae.k": [2, 4]},
    "metrics": ["cross_entropy", "explained_variance", "latents", "decoder"],
}


def project(root: Path, model: Path, **changes: Any) -> Workbench:
    bench = furnish(root, model)
    bench.spec(**SPEC, **changes)
    return bench


def measured(bench: Workbench, device: torch.device | str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(bench.root)
    return run(["run", "--device", str(device), "--executor", "inline"])


def values(bench: Workbench) -> dict[str, float]:
    return {
        f"{name} {value.domain} {value.id}": value.value
        for name, record in bench.records().items()
        for value in record.metrics
        if value.value is not None
    }


def test_a_spec_gives_the_numbers_of_a_cpu(
    tmp_path: Path, tiny_model: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = project(tmp_path / "here", tiny_model), project(tmp_path / "there", tiny_model)
    assert measured(there, device, monkeypatch) == 0
    assert measured(here, "cpu", monkeypatch) == 0
    wanted, found = values(here), values(there)
    assert len(wanted) > 20
    assert found.keys() == wanted.keys()
    compared = {name: value for name, value in wanted.items() if name.split()[-1].startswith(COMPARED)}
    assert len(compared) >= 4
    assert {name: found[name] for name in compared} == pytest.approx(compared, rel=TOLERANCE, abs=TOLERANCE)
    assert {record.environment.device for record in there.records().values()} == {str(device)}


def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    tmp_path: Path, tiny_model: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = project(tmp_path / "whole", tiny_model), project(tmp_path / "broken", tiny_model)
    assert measured(whole, device, monkeypatch) == 0
    step = NativeTrainer.step

    def falls(trainer: NativeTrainer, x: torch.Tensor) -> None:
        if trainer.next_step == 9:
            raise RuntimeError("a fault on purpose")
        step(trainer, x)

    with monkeypatch.context() as patch:
        patch.setattr(NativeTrainer, "step", falls)
        assert measured(broken, device, monkeypatch) == 3
    checkpoints = list((broken.root / "results/store/partial").glob("*/state*"))
    assert len(checkpoints) == 2
    assert measured(broken, device, monkeypatch) == 0
    assert broken.weights() == whole.weights()
    assert values(broken) == values(whole)
