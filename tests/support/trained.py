"""Hidden states with structure, and SAEs trained on them for a few steps."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE
from latentbench.sae.options import Variant
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer

D, WIDTH, K = 16, 48, 4
SITE = Site(index=0)
SEEDS = st.integers(0, 2**31 - 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(n: int = 40, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hidden states with structure: sums of a few directions, off centre."""
    directions = torch.randn(24, D, generator=rng(99), dtype=dtype)
    amounts = torch.rand(n, 24, generator=rng(seed), dtype=dtype) * (torch.rand(n, 24, generator=rng(seed + 1)) < 0.15)
    return amounts @ directions * 3 + 0.7


def trained(options: Variant, *bases: SparseAutoencoder, steps: int = 40, double: bool = False) -> SparseAutoencoder:
    x = tokens(64, dtype=torch.float64 if double else torch.float32)
    sae = options.build(D, rng(), bases)
    assert isinstance(sae, TrainableSAE)
    sae = sae.double() if double else sae
    recipe = TrainingOptions(batch=64, lr=3e-3, dead_after=640)
    norm = float(x.norm(dim=1).mean())
    trainer = NativeTrainer(sae, SITE, recipe, steps=steps, first_norm=norm, mean=x.mean(0))
    for _ in range(steps):
        trainer.step(x)
    return trainer.finish()


def scaled(sae: TrainableSAE, scale: float, x: Tensor) -> Tensor:
    """x̂ of an SAE that reads and writes `scale · x`."""
    return sae(x * scale) / scale
