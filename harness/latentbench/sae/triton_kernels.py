"""Triton kernels for sparse latents, started by `latentbench.sae.backends.triton_ops`; written from the formulas.

Nothing is added atomically: every output is written by one program, which adds in a fixed order, so the same inputs give
the same bytes on the same device. Dimensions are walked in blocks of `block_d`, entries of a latent `block_e` at a time;
what lies beyond the end is masked, so that any d_in, width and number of entries fit. All tensors are contiguous.

An entry whose value is zero is padding: nothing is read for it, and its products are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

kernel: Callable[[Callable[..., Any]], Any] = triton.jit
"""`triton.jit` with a type."""


@kernel
def entries(
    rows: tl.tensor,
    values: tl.tensor,
    vectors: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    columns: tl.tensor,
    d: tl.tensor,
    block_e: tl.constexpr,
) -> tl.tuple:
    """Entries first.. below `end`: values [block_e] and vectors[row] [block_e, block_d], zeros beyond and for padding."""
    places = first + tl.arange(0, block_e)
    value = tl.load(values + places, mask=places < end, other=0.0)
    row = tl.load(rows + places, mask=places < end, other=0)
    wanted = (value != 0)[:, None] & (columns < d)[None, :]
    return value, tl.load(vectors + row[:, None] * d + columns[None, :], mask=wanted, other=0.0)


@kernel
def decode(
    values: tl.tensor,
    indices: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    active: tl.tensor,
    d: tl.tensor,
    block_d: tl.constexpr,
) -> None:
    """out[n] = Σ_a values[n, a] · weight[indices[n, a]]; one program per token n and block of dimensions."""
    n = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    total = tl.zeros([block_d], dtype=out.dtype.element_ty)
    for a in range(active):
        value = tl.load(values + n * active + a)
        latent = tl.load(indices + n * active + a)
        read = tl.where(value != 0, d, 0)
        total += value * tl.load(weight + latent * d + columns, mask=columns < read, other=0.0)
    tl.store(out + n * d + columns, total, mask=columns < d)


@kernel
def decode_backward(
    starts: tl.tensor,
    rows: tl.tensor,
    values: tl.tensor,
    weight: tl.tensor,
    g: tl.tensor,
    dweight: tl.tensor,
    dots: tl.tensor,
    count: tl.tensor,
    d: tl.tensor,
    block_d: tl.constexpr,
    block_e: tl.constexpr,
) -> None:
    """dweight[l] = Σ_e values[e] · g[rows[e]] and dots[block, e] = <weight[l], g[rows[e]]> over the block's dimensions.

    One program per latent l and block; its entries are starts[l] .. starts[l + 1] of `count`. g is read once for both.
    """
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    first, end = tl.load(starts + latent), tl.load(starts + latent + 1)
    row = tl.load(weight + latent * d + columns, mask=columns < tl.where(first < end, d, 0), other=0.0)
    total = tl.zeros([block_e, block_d], dtype=dweight.dtype.element_ty)
    for e in range(first, end, block_e):
        value, vector = entries(rows, values, g, e, end, columns, d, block_e)
        total += value[:, None] * vector
        places = e + tl.arange(0, block_e)
        dot = tl.sum(vector * row[None, :], axis=1)
        tl.store(dots + tl.program_id(1).to(tl.int64) * count + places, dot, mask=places < end)
    tl.store(dweight + latent * d + columns, tl.sum(total, axis=0), mask=columns < d)


@kernel
def encode_backward(
    starts: tl.tensor,
    rows: tl.tensor,
    values: tl.tensor,
    x: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    d: tl.tensor,
    block_d: tl.constexpr,
    block_e: tl.constexpr,
) -> None:
    """dweight[l] = Σ_e values[e] · x[rows[e]] and dbias[l] = Σ_e values[e]; one program per latent l and block."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    first, end = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros([block_e, block_d], dtype=dweight.dtype.element_ty)
    bias = tl.zeros([block_e], dtype=dweight.dtype.element_ty)
    for e in range(first, end, block_e):
        value, vector = entries(rows, values, x, e, end, columns, d, block_e)
        total += value[:, None] * vector
        bias += value
    tl.store(dweight + latent * d + columns, tl.sum(total, axis=0), mask=columns < d)
    tl.store(dbias + latent, tl.sum(bias, axis=0), mask=tl.program_id(1) == 0)
