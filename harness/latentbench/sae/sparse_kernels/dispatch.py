"""Which backend computes the sparse products: numba on CPUs, Triton on CUDA, torch everywhere else.

`backend(...)` is asked with the tensors at hand. Triton is only imported once a tensor lies on a CUDA device. Where it is
missing, or its kernels fail or disagree with torch on a small problem (asked once per device, before training), torch's
operations do the same. The environment variable LATENTBENCH_KERNELS forces one choice: `torch`, or `triton`, which on CPU
tensors needs Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.sae.sparse_kernels import numba_backend
from latentbench.sae.sparse_kernels.backend import Backend, TorchBackend
from latentbench.sae.sparse_kernels.numba_backend import NumbaBackend

TOKENS, ACTIVE, WIDTH, D = 9, 7, 20, 33
"""More entries than `triton_backend.HELD`, so that prefixes need two passes, and no powers of two, so that masks count."""
TOLERANCE = 1e-2
"""Far above float32 rounding, and above that of the TF32 products which people may have allowed."""


def agree(own: Backend, other: Backend, device: torch.device) -> bool:
    """Whether all products of a small problem with padding come out the same on `device` in float32."""
    pairs = zip(_products(own, device), _products(other, device), strict=True)
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)


def _products(backend: Backend, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(TOKENS, ACTIVE, generator=generator).relu().to(device)
    indices = torch.randint(0, WIDTH, (TOKENS, ACTIVE), generator=generator).to(device)
    weight, x = (torch.randn(rows, D, generator=generator).to(device) for rows in (WIDTH, TOKENS))
    shares = torch.rand(1, ACTIVE + 1, generator=generator).to(device)
    reconstruction = torch.zeros_like(x)
    losses = backend.prefix_losses(values, indices, weight, x, shares, reconstruction)
    return [
        backend.decode(values, indices, weight),
        *backend.decode_backward(values, indices, weight, x),
        *backend.encode_backward(values, indices, x, WIDTH),
        losses,
        *backend.prefix_backward(values, indices, weight, x, shares, reconstruction),
    ]


FORCED = os.environ.get("LATENTBENCH_KERNELS", "")
NUMBA, TORCH = NumbaBackend(), TorchBackend()


def backend(*tensors: Tensor) -> Backend:
    """The implementation for products of `tensors`. Raises InvalidInput or NotAvailable where a forced one cannot be."""
    if FORCED:
        return _forced(FORCED)
    if numba_backend.usable(*tensors):
        return NUMBA
    return _on(tensors[0].device) if all(map(_for_triton, tensors)) else TORCH


def _for_triton(tensor: Tensor) -> bool:
    # torch on AMD cards calls its devices CUDA too; the kernels were compiled for Nvidia's only.
    return tensor.is_cuda and torch.version.hip is None and tensor.dtype in (torch.float32, torch.float64)


def _forced(name: str) -> Backend:
    if name == "torch":
        return TORCH
    if name != "triton":
        raise InvalidInput(f"LATENTBENCH_KERNELS is {name!r}: use torch or triton, or leave it unset")
    if find_spec("triton") is None:
        raise NotAvailable("LATENTBENCH_KERNELS is triton, which is not installed: pip install triton")
    return _triton()


@lru_cache(maxsize=1)
def _triton() -> Backend:
    from latentbench.sae.sparse_kernels.triton_backend import TritonBackend

    return TritonBackend()


@lru_cache(maxsize=16)
def _on(device: torch.device) -> Backend:
    """Triton's kernels if they work on `device`, otherwise torch's operations."""
    # Asked before importing: that Triton is not installed is no failure to warn of.
    if find_spec("triton") is None:
        return TORCH
    try:
        problem = "" if agree(_triton(), TORCH, device) else "their results differ from torch's"
    except Exception as error:  # old cards and drivers fail in many ways; no training ends for that
        problem = f"{type(error).__name__}: {error}"
    if not problem:
        return _triton()
    # Said once per device, since the answer is cached.
    warnings.warn(f"the Triton kernels do not work on {device} ({problem}): torch runs instead", stacklevel=2)
    return TORCH


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Within it, products are computed by `torch`, `triton`, or ("") whatever fits."""
    global FORCED
    before, FORCED = FORCED, name
    try:
        yield
    finally:
        FORCED = before
