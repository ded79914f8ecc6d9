"""Matching timed against the matrix products it cannot do without, on the same machine and interleaved with them.

The bare product is W_A W_Bᵀ in the same tiles, written to a buffer and forgotten; matching adds unit length, the best
match of every latent in both directions, and no width × width matrix.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median

import torch
from torch import Tensor

from latentbench.core.resources import memory_of, now
from latentbench.flow.matching import SOURCE_ROWS, TARGET_ROWS, nearest

WIDTH, D_IN, PAIRS = 16_384, 2_304, 26
"""Gemma-2-2B with Gemma Scope's 16k dictionaries: pairs of consecutive residual layers, and one more."""


@dataclass(frozen=True)
class MatchingTiming:
    """Medians over pairs of layers."""

    width: int
    d_in: int
    k: int
    pairs: int
    seconds: float
    """Of one pair, both directions."""
    product_seconds: float
    """Of the bare products of one pair."""
    ratio: float
    """Median over pairs of (matching's seconds / the bare products')."""
    peak_bytes: int
    """Beyond the weights of the two layers and the imports, on the device that computes."""


def run(pairs: int = PAIRS, width: int = WIDTH, d_in: int = D_IN, k: int = 1, device: str = "cpu") -> MatchingTiming:
    """Times `pairs` pairs of layers of random directions after one warm-up on a small pair."""
    place = torch.device(device)
    # Loads the libraries' kernels, which must count as neither time nor memory of the first pair.
    nearest(*_layers(256, d_in, place, 0), k)
    rounds = [_round(width, d_in, k, place, number) for number in range(pairs)]
    return MatchingTiming(
        width,
        d_in,
        k,
        pairs,
        median(ours for ours, _ in rounds),
        median(bare for _, bare in rounds),
        median(ours / bare for ours, bare in rounds),
        peak_memory(width, d_in, k, device),
    )


def products(source: Tensor, target: Tensor, out: Tensor) -> None:
    """All inner products of two layers, tile by tile, into one buffer [SOURCE_ROWS · TARGET_ROWS]."""
    for left in torch.split(source, SOURCE_ROWS):
        for right in torch.split(target, TARGET_ROWS):
            torch.mm(left, right.T, out=out[: len(left) * len(right)].view(len(left), len(right)))


def peak_memory(width: int, d_in: int, k: int, device: str = "cpu") -> int:
    """Bytes that matching two layers needs beyond their weights."""
    if torch.device(device).type == "cuda":
        return _peak_on_device(width, d_in, k, torch.device(device))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a process's peak never falls
        return pool.submit(_peak_of_process, width, d_in, k).result()


def _round(width: int, d_in: int, k: int, device: torch.device, number: int) -> tuple[float, float]:
    source, target = _layers(width, d_in, device, number)
    out = torch.empty(SOURCE_ROWS * TARGET_ROWS, device=device)
    start = now(device)
    nearest(source, target, k)
    middle = now(device)
    products(source, target, out)
    return middle - start, now(device) - middle


def _layers(width: int, d_in: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    source, target = (torch.empty(width, d_in, device=device).normal_(generator=generator) for _ in range(2))
    return source, target


def _peak_of_process(width: int, d_in: int, k: int) -> int:
    nearest(*_layers(256, d_in, torch.device("cpu"), 0), k)
    layers = _layers(width, d_in, torch.device("cpu"), 0)
    return memory_of(lambda: nearest(*layers, k))


def _peak_on_device(width: int, d_in: int, k: int, device: torch.device) -> int:
    layers = _layers(width, d_in, device, 0)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    nearest(*layers, k)
    return torch.cuda.max_memory_allocated(device) - before
