"""Small SAEs of every native variant in training, on hidden states that are a function of the block."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE
from latentbench.sae.options import (
    AbsTopKOptions,
    BatchTopKOptions,
    BoostedOptions,
    ExtendedOptions,
    GatedOptions,
    HierarchicalTopKOptions,
    JumpReLUOptions,
    KronJumpReLUOptions,
    KronOptions,
    MatchingPursuitOptions,
    MatryoshkaOptions,
    MultiTopKOptions,
    PAnnealOptions,
    StandardOptions,
    StitchedOptions,
    TopKOptions,
    Variant,
)
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer, train

D, WIDTH, K = 12, 32, 3
HERE, THERE = Site(index=0), Site(index=1)
RECIPE = TrainingOptions(batch=32, buffer=64, lr=3e-3, dead_after=96)
BASE = TopKOptions(width=WIDTH, k=K)
OPTIONS: list[Variant] = [
    BASE,
    BatchTopKOptions(width=WIDTH, k=K),
    HierarchicalTopKOptions(width=WIDTH, k=K),
    MatryoshkaOptions(width=WIDTH, k=K, groups=(8, 24)),
    KronOptions(width=WIDTH, k=K, m=2, n=4),
    StandardOptions(width=WIDTH),
    GatedOptions(width=WIDTH),
    JumpReLUOptions(width=WIDTH, target_l0=4),
    AbsTopKOptions(width=WIDTH, k=K),
    MultiTopKOptions(width=WIDTH, k=K),
    MatchingPursuitOptions(width=WIDTH, k=K),
    PAnnealOptions(width=WIDTH, updates=3),
    KronJumpReLUOptions(width=WIDTH, m=2, n=4, target_l0=4),
    BoostedOptions(base=BASE, width=16, k=2),
    ExtendedOptions(base=BASE, extra_width=6, extra_k=2, init="most_active"),
    StitchedOptions(base=BASE, grafted=6),
]
IDS = [options.variant for options in OPTIONS]


class Blocks:
    """Ten blocks of two batches at two sites, each a pure function of its number."""

    blocks, steps = 10, 20

    def __init__(self, corrupt: int | None = None) -> None:
        self.corrupt = corrupt
        first = [batch[HERE] for batch in self.batches(0)]
        self.means = {site: torch.cat(first).mean(0) for site in (HERE, THERE)}
        self.first_norms = {site: float(torch.cat(first).norm(dim=1).mean()) for site in (HERE, THERE)}

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        generator = torch.Generator().manual_seed(block)
        for _ in range(2):
            x = torch.randn(32, D, generator=generator) * torch.linspace(3, 0.1, D) + 0.5
            yield {HERE: x, THERE: x * (nan if block == self.corrupt else 2.0)}


def base() -> SparseAutoencoder:
    return BASE.build(D, torch.Generator().manual_seed(5))


def bases(options: Variant) -> tuple[SparseAutoencoder, ...]:
    return tuple(base() for _ in options.base_sections)


def trainer(options: Variant, site: Site = HERE, recipe: TrainingOptions = RECIPE, seed: int = 0) -> NativeTrainer:
    sae, stream = options.build(D, torch.Generator().manual_seed(seed), bases(options)), Blocks()
    assert isinstance(sae, TrainableSAE)
    norm, mean = stream.first_norms[site], stream.means[site]
    return NativeTrainer(sae, site, recipe, steps=stream.steps, first_norm=norm, mean=mean)


def assert_equal_weights(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def trained(
    options: Variant, seed: int = 0, recipe: TrainingOptions = RECIPE
) -> tuple[SparseAutoencoder, NativeTrainer]:
    """Trained in one go, alone."""
    one = trainer(options, recipe=recipe, seed=seed)
    outcome = train([one], Blocks())[one]
    assert isinstance(outcome, SparseAutoencoder), outcome
    return outcome, one


def interrupted(
    options: Variant, site: Site = HERE, recipe: TrainingOptions = RECIPE
) -> tuple[SparseAutoencoder, NativeTrainer]:
    """Trained with a new process's worth of objects after every block."""
    state: dict[str, Tensor] | None = None
    for block in range(Blocks.blocks):
        running = trainer(options, site, recipe)
        if state is not None:
            running.load_state(state)
        assert running.next_block == block
        for batch in Blocks().batches(block):
            running.step(batch[site])
        running.next_block = block + 1
        state = running.state()
    return running.finish(), running
