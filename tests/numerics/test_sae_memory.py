"""How much memory a training step takes."""

from __future__ import annotations

import pytest
import torch

from latentbench.bench.train import Shape, compare_memory
from latentbench.core.sites import Site
from latentbench.sae.autoencoder import TrainableSAE
from latentbench.sae.options import BoostedOptions, JumpReLUOptions, TopKOptions, Variant
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer

D, WIDTH, K, N = 32, 512, 8, 256
FLOAT = 4


def memory_of(options: Variant, base: TrainableSAE | None = None, steps: int = 2) -> int:
    sae = options.build(D, torch.Generator().manual_seed(0), () if base is None else (base,))
    assert isinstance(sae, TrainableSAE)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    recipe = TrainingOptions(batch=N)
    trainer = NativeTrainer(sae, Site(index=0), recipe, steps=steps, first_norm=6.0, mean=x.mean(0))
    for _ in range(steps):
        trainer.step(x)
    assert trainer.training_record()["memory_bytes"] == trainer.usage.peak
    return trainer.usage.peak


def test_the_memory_of_training_is_weights_gradients_moments_and_what_a_step_makes() -> None:
    weights, pre = (2 * D * WIDTH + WIDTH + D) * FLOAT, N * WIDTH * FLOAT
    codes = N * K * (FLOAT + 8)
    assert 4 * weights + pre + codes < memory_of(TopKOptions(width=WIDTH, k=K)) < 4 * weights + pre + 12 * codes
    dense = memory_of(JumpReLUOptions(width=WIDTH))
    assert dense > 4 * weights + 2 * pre  # pre-activations and latents are kept for the backward pass


def test_what_others_hold_is_not_counted() -> None:
    alone = memory_of(TopKOptions(width=WIDTH, k=K))
    other = memory_of(TopKOptions(width=8 * WIDTH, k=K))
    assert other > 4 * alone
    assert memory_of(TopKOptions(width=WIDTH, k=K)) == alone


@pytest.mark.parametrize("width", [WIDTH, 4 * WIDTH])
def test_the_base_of_a_boosted_sae_takes_memory_too(width: int) -> None:
    options = TopKOptions(width=width, k=K)
    base = options.build(D, torch.Generator().manual_seed(0))
    assert isinstance(base, TrainableSAE)
    held = sum(p.numel() for p in base.parameters()) * FLOAT
    found = memory_of(BoostedOptions(base=options, width=64, k=2, selection="topk"), base)
    assert held + N * width * FLOAT < found < held + N * width * FLOAT + memory_of(TopKOptions(width=64, k=2)) * 2


def test_a_step_over_all_budgets_takes_hardly_more_memory_than_one_of_top_k() -> None:
    """HierarchicalTopK un-adds atoms in its backward pass: O(N · d_in) as TopK, not O(N · K · d_in) = 302 MB here."""
    shape = Shape(d_in=288, width=8192, k=32, batch=4096)
    found = compare_memory(shape, k=64)
    weights, pre = 2 * 288 * 8192 * 4, 8192 * 4096 * 4
    assert 4 * weights + pre <= found.topk <= 1.5 * (4 * weights + pre)  # weights, gradients, two moments; selection
    assert found.ratio <= 1.3
