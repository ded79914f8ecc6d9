"""The sparse products on CPUs: parallel kernels compiled by numba; torch operations run where they cannot.

Every kernel works on a range `lo..hi` of rows, latents or slices that only one thread writes, and walks it in a fixed
order: results do not depend on the number of threads. Ranges are run on Python threads (the kernels release the GIL),
as many as torch uses. An entry of the codes whose value is zero is padding and receives no gradient.

Sums that start at `row[0] * 0` are float64 to numba whatever the rows are, since it multiplies a float32 by an integer in
float64: dot products and errors of float32 rows are added up in float64. Gradients are added up in the type of the weights.

Formulas of the loss over prefixes are in `latentbench.sae.variants.topk`, pairs of pre-activations in
`latentbench.sae.variants.kron`.
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

from latentbench.sae.autoencoder import Codes
from latentbench.sae.memory import gradients
from latentbench.sae.sparse_kernels.backend import Backend

try:
    from numba import njit
except ImportError:  # where numba has no wheel, torch operations run
    COMPILED = False
else:
    COMPILED = True

Array = np.ndarray[Any, Any]
FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Allows vectorised sums (another order of adding, fused multiply-add); NaN and infinity keep their meaning."""
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
        # Ties are broken by number throughout, so what leaves the heap last does not depend on the order of insertion.
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
    # The caller's output row doubles as the heap: it is overwritten with the final choice afterwards.
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
    # About 2k blocks, so that there are k maxima to bound with. In blocks of fewer than 16 there would be hardly fewer
    # maxima than entries; in blocks of more than 64, many entries to search in each block that reaches the bound.
    size = max(16, min(64, width // (2 * k)))
    blocks = -(-width // size)
    maxima = np.empty(blocks, pre.dtype)
    for n in range(lo, hi):
        row, best, where = pre[n], values[n], indices[n]
        maxima_of(row, size, maxima)
        # With fewer blocks than k the maxima bound nothing, and every entry must reach the bound: −infinity.
        least = least_of_top(maxima, best, where) if blocks >= k else row[0] - np.inf
        found = 0
        for b in range(blocks):
            if maxima[b] >= least:
                for c in range(b * size, min(b * size + size, width)):
                    value = row[c]
                    # `>=`: the k-th largest maximum is itself an entry, and may be the k-th largest of all.
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
    # A stable counting sort: one pass over the entries each way, and entries of a latent stay in the order of tokens,
    # which fixes the order of every sum over them.
    for e in range(indices.shape[0]):
        starts[indices[e] + 1] += 1
    for latent in range(starts.shape[0] - 1):
        starts[latent + 1] += starts[latent]
    # `starts` itself must survive: it bounds the latents.
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
        drow[:] = 0  # `dweight` comes uninitialised from the pool, and latents without entries need their zeros too
        for e in range(starts[latent], starts[latent + 1]):
            n, a = divmod(order[e], active)
            value = values[n, a]
            if value != 0:
                gn = g[n]
                dot = row[0] * 0
                # Both products in one loop: each number of g[n] is loaded once.
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


@compiled
def pair_strength(u: float, v: float, signed: bool) -> float:
    """u · v where both are positive, or (signed) wherever the product is; otherwise 0."""
    return u * v if signed or (u > 0 and v > 0) else u * 0


@compiled
def head_bounds(row: Array, m: int, n: int, signed: bool, bounds: Array) -> None:
    """The largest pair strength of every head: `row` holds m base, then n extension pre-activations per head."""
    for head in range(bounds.shape[0]):
        start = head * (m + n)
        # Of a product of signed factors the largest is at a corner: both largest, or both smallest.
        high_u = low_u = row[start]
        for i in range(start + 1, start + m):
            high_u, low_u = max(high_u, row[i]), min(low_u, row[i])
        high_v = low_v = row[start + m]
        for j in range(start + m + 1, start + m + n):
            high_v, low_v = max(high_v, row[j]), min(low_v, row[j])
        bound = pair_strength(high_u, high_v, False)
        if signed:
            bound = max(bound, low_u * low_v, high_u * high_v)
        bounds[head] = bound


@compiled
def top_pairs(
    pre: Array, m: int, n: int, signed: bool, pruned: bool, values: Array, indices: Array, lo: int, hi: int
) -> None:
    """The k strongest pairs per token of `pre` [N, h(m + n)], descending, zero-padded.

    The strength of a head's best pair bounds all its pairs, and each bound is reached by a pair: only heads at or
    above the k-th largest bound can hold one of the k strongest (KronSAE selection without materialising all pairs).
    """
    heads, k = pre.shape[1] // (m + n), values.shape[1]
    bounds = np.empty(heads, pre.dtype)
    for t in range(lo, hi):
        row, best, where = pre[t], values[t], indices[t]
        head_bounds(row, m, n, signed, bounds)
        least = row[0] * 0
        if pruned and k <= heads:
            least = least_of_top(bounds, best, where)
        # Zeros are a valid heap and the padding at once: only strengths above zero displace them.
        best[:] = 0
        where[:] = 0
        for head in range(heads):
            if bounds[head] > 0 and bounds[head] >= least:
                start = head * (m + n)
                for i in range(m):
                    for j in range(n):
                        strength = pair_strength(row[start + i], row[start + m + j], signed)
                        # `>`: of equal strengths the pair that came first stays, which has the lower number.
                        if strength > best[0] and strength >= least:
                            best[0] = strength
                            where[0] = (head * m + i) * n + j
                            sink(best, where, 0, k)
        sort_heap(best, where, k)


@compiled
def prefix_loss(
    values: Array,
    indices: Array,
    weight: Array,
    x: Array,
    shares: Array,
    reconstruction: Array,
    losses: Array,
    lo: int,
    hi: int,
) -> None:
    """losses[n] = Σ_r shares[n, r] ‖x − x̂_r‖², x̂_r from the first r entries; x̂ grows in `reconstruction`."""
    active, d = values.shape[1], weight.shape[1]
    for n in range(lo, hi):
        # Either all tokens have the same shares [1, A + 1] or each its own [N, A + 1]; the remainder fits both.
        xn, rn, share = x[n], reconstruction[n], shares[n % shares.shape[0]]
        # The error of the empty prefix; padding then keeps the latest error instead of computing it again.
        square = xn[0] * 0
        for c in range(d):
            square += (xn[c] - rn[c]) * (xn[c] - rn[c])
        total = share[0] * square
        for a in range(active):
            value = values[n, a]
            if value != 0:
                row = weight[indices[n, a]]
                square = xn[0] * 0
                for c in range(d):
                    rn[c] += value * row[c]
                    square += (xn[c] - rn[c]) * (xn[c] - rn[c])
            total += share[a + 1] * square
        losses[n] = total


SLICE = 128
"""Dimensions over which `prefix_backward` sums at once; fixed, so that results do not depend on the thread count."""


@compiled
def unadd(row: Array, drow: Array, suffix: Array, current: Array, weighted: float, value: float) -> Any:
    """One atom of `prefix_backward`: adds its gradient to `drow`, takes it out of `current`, returns <row, suffix>.

    A function of its own because the same loop inside the caller's loops is not vectorised.
    """
    dot = row[0] * 0
    for c in range(row.shape[0]):
        suffix[c] += weighted * current[c]
        dot += row[c] * suffix[c]
        drow[c] += value * suffix[c]
        current[c] -= value * row[c]
    return dot


@compiled
def prefix_backward(
    values: Array,
    indices: Array,
    weight: Array,
    x: Array,
    shares: Array,
    reconstruction: Array,
    dweight: Array,
    dvalues: Array,
    dbias: Array,
    lo: int,
    hi: int,
) -> None:
    """Gradients of `prefix_loss` (halved) for slices lo..hi of the dimensions, walked together, un-adding atoms.

    With S_r = Σ_{j ≥ r} shares_j (x̂_j − x): dweight[i_r] += value_r S_r, dvalues[slice, n, r] = <weight[i_r], S_r>,
    dbias = Σ S_0. `dweight` and `dbias` must start at zero.
    """
    # Threads share out dimensions and not tokens: many tokens write to the row of one latent, but each dimension of it
    # belongs to one slice. Every thread therefore walks all tokens, in order.
    tokens, active = values.shape
    d = weight.shape[1]
    first, last = lo * SLICE, min(hi * SLICE, d)
    suffix, current = np.empty(d, weight.dtype), np.empty(d, weight.dtype)
    for n in range(tokens):
        share = shares[n % shares.shape[0]]
        for c in range(first, last):
            suffix[c] = 0
            current[c] = reconstruction[n, c] - x[n, c]
        for a in range(active - 1, -1, -1):
            weighted, value, latent = share[a + 1], values[n, a], indices[n, a]
            if value != 0:
                for part in range(lo, hi):
                    start, end = part * SLICE, min(part * SLICE + SLICE, d)
                    row, drow = weight[latent, start:end], dweight[latent, start:end]
                    dvalues[part, n, a] = unadd(row, drow, suffix[start:end], current[start:end], weighted, value)
            # Padding has no atom to un-add, but a share of the loss may lie on the prefix that ends with it.
            elif weighted != 0:
                for c in range(first, last):
                    suffix[c] += weighted * current[c]
        for c in range(first, last):
            dbias[c] += suffix[c] + share[0] * current[c]


class NumbaBackend(Backend):
    """The kernels above, on float32 or float64 tensors in CPU memory; see `usable`."""

    name = "numba"

    def top_rows(self, pre: Tensor, values: Tensor, indices: Tensor) -> None:
        share(top_rows, even(len(pre)), array(pre), array(values), array(indices))

    def top_pairs(self, pre: Tensor, m: int, n: int, signed: bool, k: int, pruned: bool = True) -> Codes:
        codes = Codes.empty(len(pre), k, like=pre)
        arguments = (array(pre), m, n, signed, pruned, *map(array, codes))
        share(top_pairs, even(len(pre)), *arguments)
        return codes

    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        out = values.new_zeros(values.shape[0], weight.shape[1])
        share(decode, even(len(out)), *map(array, (values, indices, weight, out)))
        return out

    def decode_backward(self, values: Tensor, indices: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        starts, order = _latent_major(indices, weight.shape[0])
        dweight, dvalues = gradients.take(weight.shape[0], weight.shape[1], like=weight), torch.zeros_like(values)
        arrays = map(array, (values, weight, g, dweight, dvalues))
        share(decode_backward, by_entries(starts), starts, order, *arrays)
        return dvalues, dweight

    def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        starts, order = _latent_major(indices, width)
        dweight, dbias = gradients.take(width, x.shape[1], like=x), dvalues.new_empty(width)
        arrays = map(array, (dvalues, x, dweight, dbias))
        share(encode_backward, by_entries(starts), starts, order, *arrays)
        return dweight, dbias

    def prefix_losses(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> Tensor:
        losses = values.new_empty(len(x))
        arrays = map(array, (values, indices, weight, x, shares, reconstruction, losses))
        share(prefix_loss, even(len(x)), *arrays)
        return losses

    def prefix_backward(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dweight = gradients.take(weight.shape[0], weight.shape[1], like=weight).zero_()
        slices = -(-x.shape[1] // SLICE)
        # Each slice writes its part of <weight, S_r> to a place of its own; they are added in one order at the end.
        dvalues, dbias = values.new_zeros(slices, *values.shape), x.new_zeros(x.shape[1])
        tensors = (values, indices, weight, x, shares, reconstruction, dweight, dvalues, dbias)
        share(prefix_backward, even(slices), *map(array, tensors))
        return dvalues.sum(0), dweight, dbias


def _latent_major(indices: Tensor, width: int) -> tuple[Array, Array]:
    """`latentbench.sae.sparse_kernels.backend.latent_major` by counting: linear in the entries, as arrays."""
    flat = indices.reshape(-1)
    starts, order = np.zeros(width + 1, np.int64), np.empty(flat.numel(), np.int64)
    count_sort(array(flat), starts, order)
    return starts, order
