"""Calls the products as on a GPU and compiles what they would launch there: `python -m tests.support.launched 75 80 ...`.

`tests.support.compiled` compiles kernels by signatures that it writes down; here they come from the calls, through Triton's own
launcher: types and alignments of arguments, numbers that are 1 or divisible by 16, options. Only the launch itself is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from latentbench.sae.sparse_kernels import triton_backend
from latentbench.sae.sparse_kernels.triton_backend import TritonBackend

KERNELS = ("decode", "decode_backward", "encode_backward", "prefix_losses", "prefix_sums", "add_sums")
SIZES = ((9, 7, 20, 33), (4, 1, 8, 1), (16, 64, 256, 768), (4, 128, 64, 2304), (16, 32, 64, 64))
"""Tokens, entries, latents, dimensions."""


class Card:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Launched:
    """In a kernel's place: compiles for what it is called with."""

    def __init__(self, kernel: Any, seen: list[dict[str, Any]]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            made = self.kernel.warmup(*arguments, grid=grid, **options)
            self.seen.append({"kernel": self.kernel.__name__, "grid": grid, "shared": made.metadata.shared})

        return launch


def products(dtype: torch.dtype, size: tuple[int, int, int, int]) -> None:
    """Every product once."""
    tokens, active, width, d = size
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(tokens, active, dtype=dtype, generator=generator).relu()
    indices = torch.randint(0, width, (tokens, active), generator=generator)
    weight, x = (torch.randn(rows, d, dtype=dtype, generator=generator) for rows in (width, tokens))
    backend = TritonBackend()
    backend.decode(values, indices, weight)
    backend.decode_backward(values, indices, weight, x)
    backend.encode_backward(values, indices, x, width)
    for rows in (1, tokens):
        shares = torch.rand(rows, active + 1, dtype=dtype, generator=generator)
        reconstruction = torch.zeros_like(x)
        backend.prefix_losses(values, indices, weight, x, shares, reconstruction)
        backend.prefix_backward(values, indices, weight, x, shares, reconstruction)


def launches(capability: int) -> Iterator[dict[str, Any]]:
    """Every launch on a card of this compute capability: kernel, grid, and bytes of shared memory."""
    driver.set_active(Card(capability))
    for dtype in (torch.float32, torch.float64):
        for size in SIZES:
            SEEN.clear()
            products(dtype, size)
            yield from SEEN


SEEN: list[dict[str, Any]] = []

if __name__ == "__main__":
    for name in KERNELS:
        setattr(triton_backend, name, Launched(getattr(triton_backend, name), SEEN))
    json.dump({capability: list(launches(int(capability))) for capability in sys.argv[1:]}, sys.stdout)
