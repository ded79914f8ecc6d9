"""Vectors of all layers in one subspace, trained by reinforcement: both factors, from the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save

from latentbench.steering.optimised import RlMethod
from latentbench.steering.rl_training import SharedVector
from latentbench_adapters.pocket.adapter import PocketProblems
from tests.numerics.test_steering_training import rloo_loss, rolled, section
from tests.support.steering import LAYERS, WIDTH, Killed, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["rolled"]  # a fixture


def test_every_step_is_adam_on_the_factors(tmp_path: Path, rolled: Any) -> None:
    lm, made_in = language_model("llama", torch.float32), lab(language_model("llama"), tmp_path)
    method = section(rank=2, temperature=0.7, micro_batch=4, optimizer={"learning_rate": 0.05})
    made = method.make(lab(lm, tmp_path))
    drawn = torch.rand(LAYERS, 2, generator=torch.Generator().manual_seed(made_in.seed("steering", "shared rank")))
    a = ((2 * drawn - 1) / 2**0.5).requires_grad_(True)
    b = torch.zeros(2, WIDTH, requires_grad=True)
    start, optimizer = a.detach().clone(), torch.optim.AdamW([a, b], lr=0.05, weight_decay=0.0)
    for step in rolled:
        optimizer.zero_grad()
        rloo_loss(lm, step, {layer: a[layer] @ b for layer in range(LAYERS)}, 3, 0.7).backward()
        optimizer.step()
    assert len(rolled) == 3
    assert not torch.allclose(a, start, atol=1e-3), "the layers' shares are trained, too"
    stacked = torch.stack([made.tensors[f"layer.{layer}"] for layer in range(LAYERS)])
    torch.testing.assert_close(stacked, (a @ b).detach(), rtol=5e-3, atol=5e-5)
    assert torch.linalg.matrix_rank(stacked.double(), rtol=1e-5) == 2
    save(made.tensors)  # into a file, as the store does


def test_a_killed_training_of_factors_goes_on_bit_for_bit(tmp_path: Path) -> None:
    lm, method = language_model("llama", torch.float32), section(rank=1, steps=4, layers=[0, 2])
    whole = method.make(lab(lm, tmp_path / "whole"))
    with pytest.raises(Killed):
        method.make(lab(lm, tmp_path / "killed", 2))
    resumed = method.make(lab(lm, tmp_path / "killed"))
    assert whole.tensors.keys() == resumed.tensors.keys() == {"layer.0", "layer.2"}
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())
    assert resumed.meta == whole.meta
    assert not hasattr(lm.model, "steering")


def test_a_shared_vector_is_made_anew_and_reaches_both_factors() -> None:
    a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2), (2, 5)))
    vector = SharedVector(a, 1, b)
    for _ in range(2):  # a second pass has a graph of its own
        vector.to(torch.float64).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad[1], 2 * b.detach().sum(1))
    torch.testing.assert_close(b.grad, 2 * a.detach()[1][:, None].expand(2, 5))
    assert not a.grad[0].any()


def test_a_rank_is_written_only_where_it_is_said_and_has_no_rates_by_layer() -> None:
    plain = RlMethod(problems=PocketProblems())
    assert "rank" not in plain.plain()
    shared = RlMethod(problems=PocketProblems(), rank=4)
    assert shared.plain() == {**plain.plain(), "rank": 4}
    assert shared.made_of(None, None).endswith("shared rank 4")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="share a subspace have no learning rate of their own"):
        RlMethod.model_validate({"problems": {"adapter": "pocket"}, "rank": 4, "optimizer": {"unit": "residual"}})
