"""CPU kernels for the loss over prefixes of the active latents; see `latentbench.sae.prefixes` for the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentbench.sae.kernels import Array, compiled


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
        xn, rn, share = x[n], reconstruction[n], shares[n % shares.shape[0]]
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
    tokens, active = values.shape
    d = weight.shape[1]
    first, last = lo * SLICE, min(hi * SLICE, d)
    suffix = np.empty(d, weight.dtype)
    current = np.empty(d, weight.dtype)
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
            elif weighted != 0:
                for c in range(first, last):
                    suffix[c] += weighted * current[c]
        for c in range(first, last):
            dbias[c] += suffix[c] + share[0] * current[c]
