"""Two processes that share every batch train what one process trains: the same up to rounding, for every variant.

Nothing but the order of sums differs. Measured after 16 steps, relative to a tensor's largest entry: at most 3·10⁻¹⁵ in
float64 and 3·10⁻⁷ in float32. Where a latent is chosen by a hair, rounding may choose another; none was in these runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE
from latentbench.sae.options import (
    AbsTopKOptions,
    BatchTopKOptions,
    BoostedOptions,
    ExtendedOptions,
    FineTunedOptions,
    GatedOptions,
    HierarchicalTopKOptions,
    JumpReLUOptions,
    KronJumpReLUOptions,
    KronOptions,
    MatchingPursuitOptions,
    MatryoshkaOptions,
    MeanOptions,
    MultiTopKOptions,
    PAnnealOptions,
    PCAOptions,
    RandomDecoderOptions,
    StandardOptions,
    StitchedOptions,
    TopKOptions,
    UntrainedOptions,
    Variant,
)
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer, train
from latentbench.sae.variants.controls import FittedSAE, FittedTrainer
from tests.support.process_groups import CPU, Shares, together

pytestmark = pytest.mark.usefixtures("one_thread")

D, WIDTH, K = 12, 48, 3
HERE = Site(index=0)
RECIPE = TrainingOptions(batch=64, buffer=128, lr=3e-3, dead_after=320)
BASE = TopKOptions(width=WIDTH, k=K)
OPTIONS: dict[str, Variant] = {
    "topk": BASE,
    "topk_aux": TopKOptions(width=WIDTH, k=K, aux_loss="normalised"),
    "batch_topk": BatchTopKOptions(width=WIDTH, k=K),
    "hierarchical_topk": HierarchicalTopKOptions(width=WIDTH, k=K),
    "matryoshka": MatryoshkaOptions(width=WIDTH, k=K, groups=(16, 32)),
    "kron": KronOptions(width=WIDTH, k=K, m=2, n=4),
    "kron_batch": KronOptions(width=WIDTH, k=K, m=2, n=4, selection="batch_topk"),
    "kron_hierarchical": KronOptions(width=WIDTH, k=K, m=2, n=4, selection="hierarchical"),
    "standard": StandardOptions(width=WIDTH),
    "gated": GatedOptions(width=WIDTH),
    "jumprelu": JumpReLUOptions(width=WIDTH, target_l0=4, bandwidth=0.5),
    "abs_topk": AbsTopKOptions(width=WIDTH, k=K),
    "multi_topk": MultiTopKOptions(width=WIDTH, k=K),
    "matching_pursuit": MatchingPursuitOptions(width=WIDTH, k=K),
    "p_anneal": PAnnealOptions(width=WIDTH, updates=3, queue=2),
    "kron_groups": KronOptions(width=WIDTH, k=K, m=2, n=4, groups=(16, 32)),
    "kron_jumprelu": KronJumpReLUOptions(width=WIDTH, m=2, n=4, target_l0=4, bandwidth=0.5),
    "boosted": BoostedOptions(base=BASE, width=16, k=2),
    "fine_tuned": FineTunedOptions(base=BASE),
    "extended": ExtendedOptions(base=BASE, extra_width=6, extra_k=2, init="most_active"),
    "stitched": StitchedOptions(base=BASE, grafted=6),
    "random_decoder": RandomDecoderOptions(width=WIDTH, k=K),
    "mean": MeanOptions(),
    "pca": PCAOptions(k=4),
    "untrained": UntrainedOptions(width=WIDTH, k=K),
}
REVIVED = (
    "topk",
    "topk_aux",
    "batch_topk",
    "hierarchical_topk",
    "matryoshka",
    "kron",
    "kron_batch",
    "kron_hierarchical",
)
"""Variants of which AuxK must have been at work."""
CASES = [(name, "float64") for name in OPTIONS] + [(name, "float32") for name in REVIVED]
LIMITS = {"float64": 1e-13, "float32": 3e-6}
"""Largest difference of a weight, relative to the largest of its tensor, after 16 steps."""


class Blocks:
    """Eight blocks of two batches of unequal size."""

    blocks, steps = 8, 16

    def __init__(self, dtype: torch.dtype, corrupt: int | None = None, device: torch.device = CPU) -> None:
        self.dtype, self.corrupt, self.device = dtype, corrupt, device
        first = torch.cat([batch[HERE] for batch in self.batches(0)])
        self.means, self.first_norms = {HERE: first.mean(0)}, {HERE: float(first.norm(dim=1).mean())}

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        generator = torch.Generator().manual_seed(block)
        for tokens in (64, 61):
            x = torch.randn(tokens, D, generator=generator) * torch.linspace(3, 0.1, D) + 0.5
            x[-1, 0] = torch.nan if block == self.corrupt else 0
            yield {HERE: x.to(self.device, self.dtype)}


Made = NativeTrainer | FittedTrainer


def trainer(name: str, dtype: torch.dtype, group: ProcessGroup = SINGLE_PROCESS, device: torch.device = CPU) -> Made:
    options, stream = OPTIONS[name], Blocks(dtype, device=device)
    bases = tuple(BASE.build(D, torch.Generator().manual_seed(5)).to(dtype) for _ in options.base_sections)
    sae = options.build(D, torch.Generator().manual_seed(0), bases).to(dtype)
    if isinstance(sae, FittedSAE):
        return FittedTrainer(sae, HERE, device, group)
    assert isinstance(sae, TrainableSAE)
    norm, mean = stream.first_norms[HERE], stream.means[HERE]
    made = NativeTrainer(sae, HERE, RECIPE, steps=stream.steps, first_norm=norm, mean=mean, group=group)
    if options.variant != "boosted":  # some latents that are dead from the start and have to be revived
        with torch.no_grad():
            for key, bias in sae.named_parameters():
                if key in ("encoder.bias", "b_enc"):
                    bias[: len(bias) // 4] = -3
    return made


def trained(name: str, dtype: torch.dtype, group: ProcessGroup = SINGLE_PROCESS) -> dict[str, Tensor]:
    """The last state, which all members hold, and the weights at the end."""
    one, last = trainer(name, dtype, group), dict[str, Tensor]()

    def checkpoint(active: list[Made]) -> None:
        last.update(active[0].state())
        group.check_identical(last)

    stream = Blocks(dtype) if group is SINGLE_PROCESS else Shares(Blocks(dtype), group)
    done = train([one], stream, checkpoint, group=group)[one]
    assert isinstance(done, SparseAutoencoder), done
    return last | {f"weights.{key}": tensor for key, tensor in done.state_dict().items()}


@cache
def alone(name: str, kind: str) -> dict[str, Tensor]:
    return trained(name, getattr(torch, kind))


def all_of_them(group: ProcessGroup, folder: Path) -> None:
    """What each of two processes does."""
    for name, kind in CASES:
        save_file(trained(name, getattr(torch, kind), group), folder / f"{name}.{kind}.{group.rank}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by two processes."""
    folder = tmp_path_factory.mktemp("together")
    assert together(all_of_them, folder) == [0, 0]
    return folder


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_two_processes_train_what_one_trains(shared: Path, name: str, kind: str) -> None:
    wanted, got = alone(name, kind), load_file(shared / f"{name}.{kind}.0")
    assert wanted.keys() == got.keys()
    differences = {key: apart(t, got[key]) for key, t in wanted.items() if key.startswith("weights.")}
    assert max(differences.values()) < LIMITS[kind], differences
    if "silent" in wanted:
        assert torch.equal(wanted["silent"], got["silent"])
        torch.testing.assert_close(wanted["curve"], got["curve"], rtol=LIMITS[kind], atol=LIMITS[kind])
        assert (wanted["devices"].tolist(), got["devices"].tolist()) == ([[1, 16]], [[2, 16]])


@pytest.mark.parametrize("name", REVIVED)
def test_dead_latents_were_revived_in_both(shared: Path, name: str) -> None:
    curve = load_file(shared / f"{name}.float64.0")["curve"]
    assert curve[:, 3].max() > 0
    assert curve[:, 5].max() > 0


@pytest.mark.parametrize("name", OPTIONS)
def test_all_members_end_with_the_same_bits(shared: Path, name: str) -> None:
    first, second = (load_file(shared / f"{name}.float64.{rank}") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
