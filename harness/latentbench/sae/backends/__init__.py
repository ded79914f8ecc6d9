"""Which implementation computes the sparse products: numba on CPUs, Triton on CUDA, torch everywhere else.

`backend(...)` is asked with the tensors at hand. Triton is only imported once a tensor lies on a CUDA device. Where it is
missing, or its kernels fail or disagree with torch on a small problem, torch's operations do the same. The environment
variable LATENTBENCH_KERNELS forces one choice: `torch`, or `triton`, which on CPU tensors needs Triton's interpreter
(TRITON_INTERPRET=1).
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

from latentbench.errors import InvalidInput, NotAvailable
from latentbench.sae import kernels
from latentbench.sae.backends.base import Backend
from latentbench.sae.backends.check import agree
from latentbench.sae.backends.numba_ops import NumbaBackend
from latentbench.sae.backends.torch_ops import TorchBackend

FORCED = os.environ.get("LATENTBENCH_KERNELS", "")
NUMBA, TORCH = NumbaBackend(), TorchBackend()


def backend(*tensors: Tensor) -> Backend:
    """The implementation for products of `tensors`. Raises InvalidInput or NotAvailable where a forced one cannot be."""
    if FORCED:
        return _forced(FORCED)
    if kernels.usable(*tensors):
        return NUMBA
    return _on(tensors[0].device) if all(map(_for_triton, tensors)) else TORCH


def _for_triton(tensor: Tensor) -> bool:
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
    from latentbench.sae.backends.triton_ops import TritonBackend

    return TritonBackend()


@lru_cache(maxsize=16)
def _on(device: torch.device) -> Backend:
    """Triton's kernels if they work on `device`, otherwise torch's operations."""
    if find_spec("triton") is None:
        return TORCH
    try:
        problem = "" if agree(_triton(), TORCH, device) else "their results differ from torch's"
    except Exception as error:  # old cards and drivers fail in many ways; no training ends for that
        problem = f"{type(error).__name__}: {error}"
    if not problem:
        return _triton()
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
