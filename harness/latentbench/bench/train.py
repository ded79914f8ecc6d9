"""Training steps timed against sae-lens and against each other, in one process, one after the other, again and again.

Only ratios of a run mean something: the rounds interleave all candidates, so that a busy machine slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.core.errors import NotAvailable
from latentbench.core.resources import memory_of
from latentbench.core.sites import Site
from latentbench.sae.autoencoder import TrainableSAE
from latentbench.sae.memory import release
from latentbench.sae.options import HierarchicalTopKOptions, KronOptions, TopKOptions, Variant
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.sparse_kernels.dispatch import forced
from latentbench.sae.trainer import NativeTrainer

REFERENCE = "sae-lens TopK"
OURS = "TopK"
TORCH_PATH = ", torch"
"""Ends the names of our steps on torch's operations."""


@dataclass(frozen=True)
class Shape:
    """Size of one training step."""

    d_in: int
    width: int
    k: int
    batch: int


SHAPES = (Shape(64, 4096, 32, 4096), Shape(288, 8192, 32, 4096), Shape(768, 16384, 32, 2048))
"""From the pocket model to GPT-2 small."""


@dataclass(frozen=True)
class StepTiming:
    """Median seconds of one candidate's step, and ratios of medians of the same rounds."""

    shape: Shape
    candidate: str
    seconds: float
    tokens_per_second: float
    speedup_over_sae_lens: float | None
    """Median over rounds of (sae-lens' seconds / this candidate's)."""
    cost_over_topk: float
    """Median over rounds of (this candidate's seconds / our TopK's with the same k and width)."""
    speedup_over_torch: float | None
    """Median over rounds of (seconds of the same step on torch's operations / this candidate's), where both are timed."""


Step = Callable[[], None]


def compare(
    shape: Shape,
    rounds: int = 5,
    seed: int = 0,
    sae_lens: bool = True,
    clock: Callable[[], float] = perf_counter,
    device: str = "cpu",
    torch_path: bool = False,
) -> list[StepTiming]:
    """Times a full optimiser step of every candidate, `rounds` times interleaved after one warm-up round.

    All read the same random hidden states and clip, step Adam and count firing latents. On a busy machine, where
    threads wait for each other, `clock=time.process_time` with one torch thread compares the work itself. `torch_path`
    adds our steps on torch's operations instead of the kernels. Raises NotAvailable when sae-lens is asked for and
    missing.
    """
    x = torch.randn(shape.batch, shape.d_in, generator=torch.Generator().manual_seed(seed)).to(device)
    steps = candidates(shape, x)
    if torch_path:
        steps |= {name + TORCH_PATH: on_torch(step) for name, step in candidates(shape, x).items()}
    if sae_lens:
        steps[REFERENCE] = sae_lens_step(shape, x)
    # The first step compiles or loads kernels and makes the buffers that later ones use again.
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = clock()
            step()
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times[name].append(clock() - start)
    return [_timing(shape, name, times) for name in steps]


def on_torch(step: Step) -> Step:
    """`step` on torch's operations instead of the kernels."""

    def run() -> None:
        with forced("torch"):
            step()

    return run


def candidates(shape: Shape, x: Tensor) -> dict[str, Step]:
    """Our steps: TopK at k and at 64, HierarchicalTopK(64) and KronSAE (m = 4, n = 8) at the same width."""
    width, k, wide_k = shape.width, shape.k, min(64, shape.width)
    options: dict[str, Variant] = {
        OURS: TopKOptions(width=width, k=k),
        f"TopK (k={wide_k})": TopKOptions(width=width, k=wide_k),
        f"HierarchicalTopK (k={wide_k})": HierarchicalTopKOptions(width=width, k=wide_k),
        "KronSAE (m=4, n=8)": KronOptions(width=width, k=k, m=4, n=8),
    }
    return {name: native_step(option, x) for name, option in options.items()}


def native_step(options: Variant, x: Tensor) -> Step:
    """One full step of a native variant on `x` [N, d_in]."""
    sae = options.build(x.shape[1], torch.Generator().manual_seed(0))
    assert isinstance(sae, TrainableSAE)
    recipe = TrainingOptions(batch=len(x), buffer=max(len(x), 131_072))
    norm = float(x.norm(dim=1).mean())
    trainer = NativeTrainer(sae, Site(index=0), recipe, steps=100_000, first_norm=norm, mean=x.mean(0))
    return lambda: trainer.step(x)


def sae_lens_step(shape: Shape, x: Tensor) -> Step:
    """sae-lens' TopK step as its trainer runs it: forward, firing counts, backward, clipping, Adam."""
    try:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput
    except ImportError as error:
        raise NotAvailable("the comparison needs sae-lens: pip install sae-lens") from error
    config = TopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.width, k=shape.k, device=str(x.device))
    sae: Any = TopKTrainingSAE(config)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    dead = torch.zeros(shape.width, dtype=torch.bool, device=x.device)
    silent = torch.zeros(shape.width, device=x.device)

    def step() -> None:
        given = TrainStepInput(
            sae_in=x, dead_neuron_mask=dead, coefficients={}, n_training_steps=0, is_logging_step=False
        )
        out = sae.training_forward_pass(given)
        with torch.no_grad():
            # Part of every step of sae-lens' trainer, as counting is of ours.
            fired = out.feature_acts.bool().any(0)
            silent.add_(1).masked_fill_(fired, 0)
        out.loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


@dataclass(frozen=True)
class StepMemory:
    """Peak bytes of two training steps beyond the hidden states: weights, moments, gradients and what a step makes."""

    shape: Shape
    k: int
    topk: int
    hierarchical: int

    @property
    def ratio(self) -> float:
        """HierarchicalTopK's over TopK's at the same k and width."""
        return self.hierarchical / self.topk


def compare_memory(shape: Shape, device: str = "cpu", k: int = 64) -> StepMemory:
    """Memory of HierarchicalTopK's step beside TopK's."""
    k = min(k, shape.width)
    options = (TopKOptions(width=shape.width, k=k), HierarchicalTopKOptions(width=shape.width, k=k))
    return StepMemory(shape, k, *(peak_memory(shape, option, device) for option in options))


def peak_memory(shape: Shape, options: Variant, device: str = "cpu") -> int:
    """Bytes that two training steps need at most beyond the imports and the hidden states.

    On the CPU in a fresh process, since a process's peak never falls.
    """
    if torch.device(device).type == "cuda":
        return _peak_on_device(shape, options, torch.device(device))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_process, shape, options).result()


def _peak_of_process(shape: Shape, options: Variant) -> int:
    small = torch.randn(8, 8)
    for kind in (TopKOptions(width=8, k=1), HierarchicalTopKOptions(width=8, k=1)):
        native_step(kind, small)()  # compiles or loads what both need
    x = torch.randn(shape.batch, shape.d_in)
    return memory_of(lambda: _two_steps(options, x))


def _peak_on_device(shape: Shape, options: Variant, device: torch.device) -> int:
    release()
    x = torch.randn(shape.batch, shape.d_in, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _two_steps(options, x)
    return torch.cuda.max_memory_allocated(device) - before


def _two_steps(options: Variant, x: Tensor) -> None:
    step = native_step(options, x)
    step()
    step()


def _timing(shape: Shape, name: str, times: dict[str, list[float]]) -> StepTiming:
    own = times[name]
    faster = median(a / b for a, b in zip(times[REFERENCE], own, strict=True)) if REFERENCE in times else None
    against = f"TopK (k={min(64, shape.width)})" if "Hierarchical" in name else OURS
    dearer = median(a / b for a, b in zip(own, times[against], strict=True))
    torch_times = times.get(name + TORCH_PATH)
    over_torch = median(a / b for a, b in zip(torch_times, own, strict=True)) if torch_times else None
    seconds = median(own)
    return StepTiming(shape, name, seconds, shape.batch / seconds, faster, dearer, over_torch)
