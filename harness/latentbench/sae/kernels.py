"""CPU kernels for sparse latents, compiled by numba; `latentbench.sae.backends` falls back to torch where they cannot run.

Every kernel works on a range `lo..hi` of rows, latents or slices that only one thread writes, and walks it in a fixed
order: results do not depend on the number of threads. Ranges are run on Python threads (the kernels release the GIL),
as many as torch uses. An entry of the codes whose value is zero is padding and receives no gradient.
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
"""Allows vectorised sums; NaN and infinity keep their meaning."""
SMALL = 1 << 16
"""Work on fewer numbers than these is not worth a second thread."""


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors: CPU, float32 or float64, numba installed."""
    return COMPILED and all(t.device.type == "cpu" and t.dtype in _FLOATS for t in tensors)


_FLOATS = (torch.float32, torch.float64)


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
    pool = _pool(os.getpid(), torch.get_num_threads())
    for done in [pool.submit(kernel, *args, lo, hi) for lo, hi in parts]:
        done.result()


def even(n: int) -> list[int]:
    """Bounds that cut n rows into one range per thread."""
    threads = min(torch.get_num_threads(), n) or 1
    return [n * t // threads for t in range(threads + 1)]


def by_entries(starts: Array) -> list[int]:
    """Bounds that cut latents into one range per thread with about equally many entries each."""
    threads = torch.get_num_threads()
    goals = [int(starts[-1]) * t // threads for t in range(1, threads)]
    return [0, *np.searchsorted(starts, goals).tolist(), len(starts) - 1]


def compiled(function: Callable[..., Any], fastmath: set[str] = FAST) -> Callable[..., Any]:
    """`function` compiled to machine code that releases the GIL; itself where numba is missing."""
    if not COMPILED:
        return function
    made: Callable[..., Any] = njit(nogil=True, cache=True, fastmath=fastmath)(function)
    return made


@compiled
def sink(values: Array, indices: Array, root: int, size: int) -> None:
    """Restores a min-heap below `root`; of equal values the higher latent number counts as smaller."""
    value, index = values[root], indices[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            values[right] < values[child] or (values[right] == values[child] and indices[right] > indices[child])
        ):
            child = right
        if values[child] > value or (values[child] == value and indices[child] < index):
            break
        values[root], indices[root] = values[child], indices[child]
        root = child
    values[root], indices[root] = value, index


@compiled
def sort_heap(values: Array, indices: Array, size: int) -> None:
    """Turns a min-heap into descending order."""
    for end in range(size - 1, 0, -1):
        values[0], values[end] = values[end], values[0]
        indices[0], indices[end] = indices[end], indices[0]
        sink(values, indices, 0, end)


@compiled
def heapify(values: Array, indices: Array, size: int) -> None:
    """Makes the first `size` entries a min-heap."""
    for root in range(size // 2 - 1, -1, -1):
        sink(values, indices, root, size)


def _maxima(row: Array, size: int, maxima: Array) -> None:
    """The largest of every `size` neighbours of `row`."""
    for b in range(maxima.shape[0]):
        start = b * size
        largest = row[start]
        for c in range(start + 1, min(start + size, row.shape[0])):
            largest = row[c] if row[c] > largest else largest
        maxima[b] = largest


maxima_of = compiled(_maxima, FAST | {"nnan"})
"""`_maxima`, vectorised: what it makes of NaN is undefined, but a NaN loss has ended the training by then."""


@compiled
def least_of_top(maxima: Array, best: Array, where: Array) -> Any:
    """The k-th largest of `maxima`; k is the length of the work space `best` and `where`."""
    k = best.shape[0]
    for b in range(k):
        best[b] = maxima[b]
        where[b] = b
    heapify(best, where, k)
    for b in range(k, maxima.shape[0]):
        if maxima[b] > best[0]:
            best[0] = maxima[b]
            where[0] = b
            sink(best, where, 0, k)
    return best[0]


@compiled
def top_rows(pre: Array, values: Array, indices: Array, lo: int, hi: int) -> None:
    """The k largest of every row of `pre` [N, width], descending; k is the width of `values` [N, k].

    Every block's maximum is an entry, so the k-th largest maximum bounds the k-th largest entry from below: only the
    few blocks that reach it are searched.
    """
    width, k = pre.shape[1], values.shape[1]
    size = max(16, min(64, width // (2 * k)))
    blocks = -(-width // size)
    maxima = np.empty(blocks, pre.dtype)
    for n in range(lo, hi):
        row, best, where = pre[n], values[n], indices[n]
        maxima_of(row, size, maxima)
        least = least_of_top(maxima, best, where) if blocks >= k else row[0] - np.inf
        found = 0
        for b in range(blocks):
            if maxima[b] >= least:
                for c in range(b * size, min(b * size + size, width)):
                    value = row[c]
                    if found < k and value >= least:
                        best[found] = value
                        where[found] = c
                        found += 1
                        if found == k:
                            heapify(best, where, k)
                    elif value > best[0] and found == k:
                        best[0] = value
                        where[0] = c
                        sink(best, where, 0, k)
        for c in range(found, k):  # only where NaN hides entries: keep them visible
            best[c] = row[c]
            where[c] = c
        sort_heap(best, where, k)


@compiled
def count_sort(indices: Array, starts: Array, order: Array) -> None:
    """Latent-major order of `indices` [entries]: entries of latent l are order[starts[l] : starts[l + 1]]."""
    for e in range(indices.shape[0]):
        starts[indices[e] + 1] += 1
    for latent in range(starts.shape[0] - 1):
        starts[latent + 1] += starts[latent]
    cursor = starts.copy()
    for e in range(indices.shape[0]):
        order[cursor[indices[e]]] = e
        cursor[indices[e]] += 1


@compiled
def decode(values: Array, indices: Array, weight: Array, out: Array, lo: int, hi: int) -> None:
    """out[n] += Σ_a values[n, a] · weight[indices[n, a]]."""
    for n in range(lo, hi):
        for a in range(values.shape[1]):
            value = values[n, a]
            if value != 0:
                row = weight[indices[n, a]]
                for c in range(row.shape[0]):
                    out[n, c] += value * row[c]


@compiled
def decode_backward(
    starts: Array,
    order: Array,
    values: Array,
    weight: Array,
    g: Array,
    dweight: Array,
    dvalues: Array,
    lo: int,
    hi: int,
) -> None:
    """Per latent l and entry at token n: dvalues = <weight[l], g[n]>, dweight[l] += value · g[n]; g[n] is read once."""
    active, d = values.shape[1], weight.shape[1]
    for latent in range(lo, hi):
        row, drow = weight[latent], dweight[latent]
        drow[:] = 0
        for e in range(starts[latent], starts[latent + 1]):
            n, a = divmod(order[e], active)
            value = values[n, a]
            if value != 0:
                gn = g[n]
                dot = row[0] * 0
                for c in range(d):
                    dot += row[c] * gn[c]
                    drow[c] += value * gn[c]
                dvalues[n, a] = dot


@compiled
def encode_backward(
    starts: Array, order: Array, dvalues: Array, x: Array, dweight: Array, dbias: Array, lo: int, hi: int
) -> None:
    """dweight[l] = Σ dvalue · x[n] and dbias[l] = Σ dvalue over the entries of latent l."""
    active, d = dvalues.shape[1], x.shape[1]
    for latent in range(lo, hi):
        drow = dweight[latent]
        drow[:] = 0
        total = drow[0]
        for e in range(starts[latent], starts[latent + 1]):
            n, a = divmod(order[e], active)
            value = dvalues[n, a]
            if value != 0:
                xn = x[n]
                total += value
                for c in range(d):
                    drow[c] += value * xn[c]
        dbias[latent] = total
