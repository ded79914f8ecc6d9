"""The Triton kernels without a GPU: right in Triton's interpreter, and machine code for two generations of GPUs.

What this cannot show: that they run on a GPU, and how fast.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.sae.autoencoder import Codes
from latentbench.sae.sparse_kernels import dispatch
from latentbench.sae.variants.topk import BudgetLoss

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install triton")
TOLERANCE = 1e-6


def run(module: str, cache: Path, *arguments: str, **environment: str) -> Any:
    """What a module of `tests.support` prints, in a process of its own."""
    switches = ("TRITON_", "LATENTBENCH_KERNELS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(switches)}
    variables = clean | {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-W", "ignore", "-m", f"tests.support.{module}", *arguments]
    done = subprocess.run(
        command, env=variables, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@needs_triton
def test_kernels_agree_with_dense_gradients(tmp_path: Path) -> None:
    """In the interpreter: operations against dense float64 autograd, whole variants against the torch path."""
    errors = run("interpreted", tmp_path, TRITON_INTERPRET="1", LATENTBENCH_KERNELS="triton")
    assert errors.pop("trainer in float32") <= 1e-5
    assert errors.pop("two runs") == 0, "two runs of the same kernels differ"
    assert errors.pop("padding") == 0, "atoms that only padding names are read"
    assert errors.pop("check on a GPU") == 0, "the check before training does not tell right from wrong"
    assert len(errors) == 28
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@needs_triton
def test_kernels_compile_for_gpus_and_add_nothing_atomically(tmp_path: Path) -> None:
    found = run("compiled", tmp_path)
    assert found["light"], "products on a CPU imported Triton"
    assert len(found["results"]) == 6 * 4
    for result in found["results"]:
        assert result["bytes"] > 0, result
        assert result["atomics"] == 0, result
        assert f"sm_{result['setting']['capability']}" in result["target"], result


SHARED_MEMORY = 48 << 10
"""Bytes that a program may have on every card from compute capability 7.5 on without being asked for."""


@needs_triton
def test_what_products_launch_compiles_for_cards_of_all_ages(tmp_path: Path) -> None:
    """By Triton's launcher, from the arguments of real calls."""
    cards = ("75", "80", "90", "120")
    found = run("launched", tmp_path, *cards)
    assert tuple(found) == cards
    for launches in found.values():
        assert len({launch["kernel"] for launch in launches}) == 6
        assert len(launches) > 150
        assert max(launch["shared"] for launch in launches) <= SHARED_MEMORY
        assert all(launch["grid"][1] <= 65_535 for launch in launches)


def test_a_forced_choice_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FORCED", "fastest")
    with pytest.raises(InvalidInput, match="torch or triton"):
        dispatch.backend(torch.ones(1))
    monkeypatch.setattr(dispatch, "FORCED", "triton")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match="pip install triton"):
        dispatch.backend(torch.ones(1))


def test_without_triton_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert dispatch._on.__wrapped__(torch.device("cpu")) is dispatch.TORCH


@pytest.mark.parametrize("reason", ["no compiler", "differ from torch's"])
def test_where_triton_does_not_work_torch_runs_and_says_why(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """A first kernel that fails, as on an old card, and one that is wrong."""

    class Broken(dispatch.TorchBackend):
        def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
            if reason == "no compiler":
                raise RuntimeError(reason)
            return super().decode(values, indices, weight) + 1

    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch, "_triton", Broken)
    with pytest.warns(UserWarning, match=reason):
        assert dispatch._on.__wrapped__(torch.device("cpu")) is dispatch.TORCH


def test_types_without_kernels_go_to_torch() -> None:
    assert dispatch.backend(torch.ones(1, dtype=torch.bfloat16)) is dispatch.TORCH
    assert dispatch.backend(torch.ones(1, device="meta")) is dispatch.TORCH


def test_the_loss_of_one_token_leaves_its_bias_alone() -> None:
    """The reconstruction grows in memory of its own, also where a bias repeated once would be the bias itself."""
    bias = torch.ones(3)
    BudgetLoss((1,))(
        Codes(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)), torch.ones(2, 3), bias, torch.ones(1, 3)
    )
    assert torch.equal(bias, torch.ones(3))
