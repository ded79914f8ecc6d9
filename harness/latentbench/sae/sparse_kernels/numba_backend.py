"""The sparse products on CPUs: parallel kernels compiled by numba; torch operations run where they cannot.

How they are compiled and shared out stands in `latentbench.sae.sparse_kernels.compiling`, what is selected in
`latentbench.sae.sparse_kernels.selection`. An entry of the codes whose value is zero is padding and receives no gradient.

Sums that start at `row[0] * 0` are float64 to numba whatever the rows are, since it multiplies a float32 by an integer in
float64: dot products and errors of float32 rows are added up in float64. Gradients are added up in the type of the weights.

Formulas of the loss over prefixes are in `latentbench.sae.variants.topk`, pairs of pre-activations in
`latentbench.sae.variants.kron`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentbench.sae.autoencoder import Codes
from latentbench.sae.memory import gradients
from latentbench.sae.sparse_kernels.backend import Backend
from latentbench.sae.sparse_kernels.compiling import COMPILED, Array, Index, array, by_entries, compiled, even, share
from latentbench.sae.sparse_kernels.selection import top_pairs, top_rows, top_sums


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors: CPU, float32 or float64, numba installed."""
    return COMPILED and all(t.device.type == "cpu" and t.dtype in _FLOATS for t in tensors)


_FLOATS = (torch.float32, torch.float64)


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
def unadd(
    weight: Array,
    dweight: Array,
    latent: Any,
    start: Any,
    end: Any,
    suffix: Array,
    current: Array,
    share: Any,
    value: Any,
) -> Any:
    """One atom of `prefix_backward` over dimensions start..end: adds its gradient to `dweight`, takes it out of `current`,
    returns <weight[latent], suffix>.

    A function of its own because the same loop inside the caller's loops is not vectorised.
    """
    dot = weight[latent, start] * 0
    for c in range(start, end):
        suffix[c] += share * current[c]
        dot += weight[latent, c] * suffix[c]
        dweight[latent, c] += value * suffix[c]
        current[c] -= value * weight[latent, c]
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
    active, d, size, one = Index(values.shape[1]), Index(weight.shape[1]), Index(SLICE), Index(1)
    first, last = Index(lo) * size, min(Index(hi) * size, d)
    suffix, current = np.empty(weight.shape[1], weight.dtype), np.empty(weight.shape[1], weight.dtype)
    for n in range(Index(values.shape[0])):
        own = n % Index(shares.shape[0])
        for c in range(first, last):
            suffix[c] = 0
            current[c] = reconstruction[n, c] - x[n, c]
        for passed in range(active):
            a = active - one - passed
            weighted, value, latent = shares[own, a + one], values[n, a], Index(indices[n, a])
            if value != 0:
                for part in range(Index(lo), Index(hi)):
                    start, end = part * size, min(part * size + size, d)
                    dot = unadd(weight, dweight, latent, start, end, suffix, current, weighted, value)
                    dvalues[part, n, a] = dot
            # Padding has no atom to un-add, but a share of the loss may lie on the prefix that ends with it.
            elif weighted != 0:
                for c in range(first, last):
                    suffix[c] += weighted * current[c]
        for c in range(first, last):
            dbias[c] += suffix[c] + shares[own, Index(0)] * current[c]


class NumbaBackend(Backend):
    """The kernels above, on float32 or float64 tensors in CPU memory; see `usable`."""

    name = "numba"

    def top_rows(self, pre: Tensor, values: Tensor, indices: Tensor) -> None:
        share(top_rows, even(len(pre)), array(pre), array(values), array(indices))

    def top_sums(self, product: Tensor, bias: Tensor, values: Tensor, indices: Tensor) -> None:
        if product.dtype is torch.bfloat16 and bias.dtype is torch.float32:
            share(top_sums, even(len(product)), array(product.view(torch.uint16)), *map(array, (bias, values, indices)))
        else:
            super().top_sums(product, bias, values, indices)

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
