"""Reinforcement learning on this device: a training that was killed goes on bit for bit, and it learns what can be learned.

The model is in float64, for which attention has one implementation, whose backward pass adds in a fixed order.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbench.steering.optimised import LoraMethod, ReinforcedMethod, RlMethod
from tests.support.steering import Killed, WordProblems, lab, language_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
]


def section(kind: type[ReinforcedMethod], **changes: Any) -> Any:
    plain = {"steps": 3, "prompts": 4, "samples": 3, "max_new_tokens": 6, "reward": "random", "selection": 0, **changes}
    made = kind.model_validate_json(json.dumps({"problems": {"adapter": "pocket"}, **plain}))
    return made.model_copy(update={"problems": WordProblems()})


@pytest.mark.parametrize("kind", [RlMethod, LoraMethod])
def test_a_killed_training_goes_on_bit_for_bit(
    tmp_path: Path, kind: type[ReinforcedMethod], device: torch.device
) -> None:
    lm, method = language_model("llama", device=device), section(kind)
    whole = method.make(lab(lm, tmp_path / "whole"))
    with pytest.raises(Killed):
        method.make(lab(lm, tmp_path / "killed", 2))
    resumed = method.make(lab(lm, tmp_path / "killed"))
    assert resumed.meta == whole.meta
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())
    assert any(float(tensor.abs().max()) > 0 for tensor in whole.tensors.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_move_in_the_types_that_models_have(tmp_path: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Adam's first step moves every coordinate by its learning rate, whatever the model computes in."""
    lm = language_model("qwen2", dtype, device=device)
    made = section(RlMethod, steps=1, optimizer={"learning_rate": 0.05}).make(lab(lm, tmp_path))
    for tensor in made.tensors.values():
        assert tensor.dtype == torch.float32
        assert float(tensor.abs().median()) == pytest.approx(0.05, rel=1e-3)
