"""How the kernels for CPUs are compiled, and how their work is shared out among threads.

Every kernel works on a range `lo..hi` of rows, latents or slices that only one thread writes, and walks it in a fixed
order: results do not depend on the number of threads. Ranges are run on Python threads (the kernels release the GIL),
as many as torch uses.

A slice of an array counts its references with locked instructions, eight for one entry's four vectors: more than 64 dimensions
of arithmetic, and threads wait for each other over it. Innermost kernels are therefore given whole arrays and unsigned numbers
(`Index`) of rows and columns; a signed one would be asked at every access whether it counts from the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from numba import njit
except ImportError:  # where numba has no wheel, torch operations run
    COMPILED = False
else:
    COMPILED = True

Array = np.ndarray[Any, Any]
FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Allows vectorised sums (another order of adding, fused multiply-add); NaN and infinity keep their meaning."""
Index = np.uint64
SMALL = 1 << 16
"""Work on fewer numbers than these is not worth a second thread."""


def array(tensor: Tensor) -> Array:
    """The tensor's memory as a C-contiguous numpy array."""
    return tensor.detach().contiguous().numpy()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="latentbench")


def share(kernel: Callable[..., None], bounds: Sequence[int], *args: Any) -> None:
    """Runs `kernel(*args, lo, hi)` for every pair of neighbours in `bounds`, in parallel."""
    parts = [(lo, hi) for lo, hi in pairwise(bounds) if lo < hi]
    if len(parts) == 1 or sum(a.size for a in args if isinstance(a, np.ndarray)) < SMALL:
        for part in parts:
            kernel(*args, *part)
        return
    # Keyed by process: after a fork the child inherits the pool as an object, but none of its threads.
    pool = _pool(os.getpid(), torch.get_num_threads())
    # A list, so that all ranges are submitted before the first is waited for.
    for done in [pool.submit(kernel, *args, lo, hi) for lo, hi in parts]:
        done.result()


def even(n: int) -> list[int]:
    """Bounds that cut n rows into one range per thread."""
    threads = min(torch.get_num_threads(), n) or 1
    return [n * t // threads for t in range(threads + 1)]


def by_entries(starts: Array) -> list[int]:
    """Bounds that cut latents into one range per thread with about equally many entries each."""
    threads = torch.get_num_threads()
    # Some latents have far more entries than others: ranges of equally many latents would leave threads waiting.
    goals = [int(starts[-1]) * t // threads for t in range(1, threads)]
    return [0, *np.searchsorted(starts, goals).tolist(), len(starts) - 1]


def compiled(function: Callable[..., Any], fastmath: set[str] = FAST) -> Callable[..., Any]:
    """`function` compiled to machine code that releases the GIL; itself where numba is missing."""
    if not COMPILED:
        return function
    made: Callable[..., Any] = njit(nogil=True, cache=True, fastmath=fastmath)(function)
    return made
