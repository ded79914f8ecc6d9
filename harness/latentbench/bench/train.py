"""Training steps timed against sae-lens and against each other, in one process, one after the other, again and again.

Only ratios of a run mean something: the rounds interleave all candidates, so that a busy machine slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

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

REFERENCE, AUTOCAST = "sae-lens TopK", "sae-lens TopK, autocast"
OURS, OURS_ROUNDED = "TopK", "TopK, bfloat16"
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
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
    """Median over rounds of (sae-lens' seconds in float32 / this candidate's)."""
    speedup_over_autocast: float | None
    """Median over rounds of (sae-lens' seconds with its autocast to bfloat16 / this candidate's)."""
    cost_over_topk: float
    """Median over rounds of (this candidate's seconds / our TopK's with the same k and width)."""
    speedup_over_torch: float | None
    """Median over rounds of (seconds of the same step on torch's operations / this candidate's), where both are timed."""


Step = Callable[[], None]
Precision = Literal["float32", "bfloat16"]


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

    Each is timed in float32, TopK and sae-lens' in bfloat16 too. All read the same random hidden states and clip, step Adam and count firing latents. On a busy machine, where
    threads wait for each other, `clock=time.process_time` with one torch thread compares the work itself. `torch_path`
    adds our steps on torch's operations instead of the kernels. Raises NotAvailable when sae-lens is asked for and
    missing.
    """
    x = torch.randn(shape.batch, shape.d_in, generator=torch.Generator().manual_seed(seed)).to(device)
    steps = candidates(shape, x)
    if torch_path:
        steps |= {name + TORCH_PATH: on_torch(step) for name, step in candidates(shape, x).items()}
    if sae_lens:
        steps |= {name: sae_lens_step(shape, x, name == AUTOCAST) for name in (REFERENCE, AUTOCAST)}
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


@contextmanager
def surroundings(one_thread: bool) -> Iterator[tuple[int, Callable[[], float]]]:
    """Within it torch has the threads that are given, with the clock to time them by.

    One thread is timed by the processor seconds of the process, which a busy machine leaves alone; several would count as
    work what they spend on waiting for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if one_thread else before)
    try:
        yield torch.get_num_threads(), process_time if one_thread else perf_counter
    finally:
        torch.set_num_threads(before)


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
        OURS_ROUNDED: TopKOptions(width=width, k=k),
        f"TopK (k={wide_k})": TopKOptions(width=width, k=wide_k),
        f"HierarchicalTopK (k={wide_k})": HierarchicalTopKOptions(width=width, k=wide_k),
        "KronSAE (m=4, n=8)": KronOptions(width=width, k=k, m=4, n=8),
    }
    return {
        name: native_step(option, x, "bfloat16" if name == OURS_ROUNDED else "float32")
        for name, option in options.items()
    }


def native_step(options: Variant, x: Tensor, precision: Precision = "float32") -> Step:
    """One full step of a native variant on `x` [N, d_in]."""
    sae = options.build(x.shape[1], torch.Generator().manual_seed(0))
    assert isinstance(sae, TrainableSAE)
    recipe = TrainingOptions(batch=len(x), buffer=max(len(x), 131_072), precision=precision)
    norm = float(x.norm(dim=1).mean())
    trainer = NativeTrainer(sae, Site(index=0), recipe, steps=100_000, first_norm=norm, mean=x.mean(0))
    return lambda: trainer.step(x)


def sae_lens_step(shape: Shape, x: Tensor, autocast: bool = False) -> Step:
    """sae-lens' TopK step as its trainer runs it: forward, firing counts, backward, clipping, Adam.

    `autocast`: as with its option of that name, forward and counting run under autocast to bfloat16.
    """
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
        with torch.autocast(x.device.type, torch.bfloat16) if autocast else nullcontext():
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
    rounded: int
    """TopK's with products in bfloat16."""

    @property
    def ratio(self) -> float:
        """HierarchicalTopK's over TopK's at the same k and width."""
        return self.hierarchical / self.topk


def compare_memory(shape: Shape, device: str = "cpu", k: int = 64) -> StepMemory:
    """Memory of HierarchicalTopK's step beside TopK's, and of TopK's in bfloat16."""
    k = min(k, shape.width)
    topk, hierarchical = TopKOptions(width=shape.width, k=k), HierarchicalTopKOptions(width=shape.width, k=k)
    rounded = peak_memory(shape, topk, device, "bfloat16")
    return StepMemory(shape, k, peak_memory(shape, topk, device), peak_memory(shape, hierarchical, device), rounded)


def peak_memory(shape: Shape, options: Variant, device: str = "cpu", precision: Precision = "float32") -> int:
    """Bytes that two training steps need at most beyond the imports and the hidden states.

    On the CPU in a fresh process, since a process's peak never falls.
    """
    if torch.device(device).type == "cuda":
        return _peak_on_device(shape, options, torch.device(device), precision)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_process, shape, options, precision).result()


def _peak_of_process(shape: Shape, options: Variant, precision: Precision) -> int:
    small = torch.randn(8, 8)
    for kind in (TopKOptions(width=8, k=1), HierarchicalTopKOptions(width=8, k=1)):
        native_step(kind, small, precision)()  # compiles or loads what both need
    x = torch.randn(shape.batch, shape.d_in)
    return memory_of(lambda: _two_steps(options, x, precision))


def _peak_on_device(shape: Shape, options: Variant, device: torch.device, precision: Precision) -> int:
    release()
    x = torch.randn(shape.batch, shape.d_in, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _two_steps(options, x, precision)
    return torch.cuda.max_memory_allocated(device) - before


def _two_steps(options: Variant, x: Tensor, precision: Precision) -> None:
    step = native_step(options, x, precision)
    step()
    step()


def _timing(shape: Shape, name: str, times: dict[str, list[float]]) -> StepTiming:
    own = times[name]
    against = f"TopK (k={min(64, shape.width)})" if "Hierarchical" in name else OURS
    dearer = median(a / b for a, b in zip(own, times[against], strict=True))
    faster = [_faster(own, times.get(other)) for other in (REFERENCE, AUTOCAST, name + TORCH_PATH)]
    over_sae_lens, over_autocast, over_torch = faster
    seconds = median(own)
    speed = shape.batch / seconds
    return StepTiming(shape, name, seconds, speed, over_sae_lens, over_autocast, dearer, over_torch)


def _faster(own: list[float], others: list[float] | None) -> float | None:
    """Median over rounds of (the other's seconds / the own); None where the other was not timed."""
    return median(a / b for a, b in zip(others, own, strict=True)) if others else None


def instructions() -> list[str]:
    """Which of the instructions that matter here the processor has; none where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return [name for name in INSTRUCTIONS if name in flags]
