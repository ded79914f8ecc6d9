"""CPU kernels that select pairs of pre-activations without making all of them; see `latentbench.sae.kron`."""

from __future__ import annotations

import numpy as np

from latentbench.sae.kernels import Array, compiled, least_of_top, sink, sort_heap


@compiled
def pair_strength(u: float, v: float, signed: bool) -> float:
    """u · v where both are positive, or (signed) wherever the product is; otherwise 0."""
    return u * v if signed or (u > 0 and v > 0) else u * 0


@compiled
def head_bounds(row: Array, m: int, n: int, signed: bool, bounds: Array) -> None:
    """The largest pair strength of every head: `row` holds m base, then n extension pre-activations per head."""
    for head in range(bounds.shape[0]):
        start = head * (m + n)
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
        best[:] = 0
        where[:] = 0
        for head in range(heads):
            if bounds[head] > 0 and bounds[head] >= least:
                start = head * (m + n)
                for i in range(m):
                    for j in range(n):
                        strength = pair_strength(row[start + i], row[start + m + j], signed)
                        if strength > best[0] and strength >= least:
                            best[0] = strength
                            where[0] = (head * m + i) * n + j
                            sink(best, where, 0, k)
        sort_heap(best, where, k)
