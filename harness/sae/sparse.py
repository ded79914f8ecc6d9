"""Sparse encoder and decoder products with hand-written gradients: only selected latents are touched.

Pre-activations are computed without an autograd graph and only to choose latents; the chosen values then get their
gradients from `attach`. No other tensor of shape [batch, width] exists, and no dense latents. Weights are stored as
one contiguous row per latent: encoder [width, d_in], decoder [width, d_in].

On CPUs the work is done by `harness.sae.kernels` (numba); elsewhere, or without numba, by torch operations with the
same results up to rounding. There are no Triton kernels yet: on accelerators the torch operations run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from harness.sae import kernels
from harness.sae.codes import Codes
from harness.sae.memory import gradients, scratch

CHUNK = 1 << 26
"""Largest number of pre-activations that exist at once."""


def rows_per_chunk(width: int) -> int:
    """How many tokens' pre-activations are computed at once."""
    return max(1, CHUNK // width)


def top_linear(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Codes:
    """The k largest of `weight · x + bias` per token, descending, without gradients.

    x [N, d_in], weight [width, d_in], bias [width]; equal pre-activations: the lower latent number wins on CPU.
    """
    values = x.new_empty(x.shape[0], k)
    indices = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        step = rows_per_chunk(weight.shape[0])
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            top_rows(preactivations(x[part], weight, bias), values[part], indices[part])
    return Codes(values, indices)


def preactivations(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`weight · x + bias` [N, width] in a buffer that the next call overwrites; no gradients."""
    out = scratch(x.shape[0], weight.shape[0], like=x)
    return torch.addmm(bias.detach(), x.detach(), weight.detach().t(), out=out)


def top_rows(pre: Tensor, values: Tensor, indices: Tensor) -> None:
    """Writes the k largest of every row of `pre` [N, width] and their columns, descending; k from `values` [N, k]."""
    if kernels.usable(pre):
        out = kernels.array(values), kernels.array(indices)
        kernels.share(kernels.top_rows, kernels.even(len(pre)), kernels.array(pre), *out)
    else:
        torch.topk(pre, values.shape[1], dim=1, out=(values, indices))


def latent_major(indices: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(starts [width + 1], order [entries]): the entries of latent l are order[starts[l] : starts[l + 1]]."""
    flat = indices.reshape(-1)
    if flat.device.type == "cpu" and kernels.COMPILED:
        starts, order = np.zeros(width + 1, np.int64), np.empty(flat.numel(), np.int64)
        kernels.count_sort(kernels.array(flat), starts, order)
        return torch.from_numpy(starts), torch.from_numpy(order)
    sorted_latents, sorted_entries = flat.sort(stable=True)
    return torch.searchsorted(sorted_latents, torch.arange(width + 1, device=flat.device)), sorted_entries


def latent_product(starts: Tensor, order: Tensor, values: Tensor, tokens: Tensor) -> Tensor:
    """Σ over a latent's entries of value · tokens[n]: [width, d_in], as one CSR product (torch path)."""
    rows = order // values.shape[1]
    shape = (len(starts) - 1, tokens.shape[0])
    matrix = torch.sparse_csr_tensor(starts, rows, values.reshape(-1)[order], shape, check_invariants=False)
    return matrix @ tokens


def gathered_dots(weight: Tensor, indices: Tensor, g: Tensor) -> Tensor:
    """<weight[indices[n, a]], g[n]> [N, A], gathered in chunks (torch path)."""
    step = max(1, CHUNK // (indices.shape[1] * weight.shape[1]))
    parts = [slice(start, start + step) for start in range(0, len(g), step)]
    return torch.cat([torch.bmm(weight[indices[p]], g[p].unsqueeze(2)).squeeze(2) for p in parts])


def embedding_sum(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """Σ_a values[n, a] · weight[indices[n, a]] [N, d_in] (torch path)."""
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


class _Attach(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, x: Tensor, weight: Tensor, *rest: Tensor | None) -> Tensor:
        ctx.save_for_backward(indices, x, weight)
        ctx.centred = rest[1] is not None
        return values.clone()

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
        indices, x, weight = ctx.saved_tensors
        dweight, dbias = _encoder_gradients(dvalues.contiguous(), indices, x, weight.shape[0])
        dx = embedding_sum(dvalues, indices, weight) if ctx.needs_input_grad[2] else None
        dshift = -(dbias @ weight) if ctx.centred and ctx.needs_input_grad[5] else None
        return None, None, dx, dweight, dbias, dshift


def _encoder_gradients(dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    starts, order = latent_major(indices, width)
    if not kernels.usable(dvalues, x):
        dbias = dvalues.new_zeros(width).index_add_(0, indices.reshape(-1), dvalues.reshape(-1))
        return latent_product(starts, order, dvalues, x), dbias
    dweight, dbias = gradients.take(width, x.shape[1], like=x), dvalues.new_empty(width)
    arrays = [kernels.array(t) for t in (starts, order, dvalues, x, dweight, dbias)]
    kernels.share(kernels.encode_backward, kernels.by_entries(arrays[0]), *arrays)
    return dweight, dbias


def attach(codes: Codes, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Codes:
    """Gives pre-activations that were selected without a graph their gradients.

    `codes.values` must be entries of `weight · x + bias`, where `x` [N, d_in] already has `shift` [d_in] subtracted.
    Gradients reach weight, bias, shift and (if it requires one) x, through the selected latents only.
    """
    values: Tensor = _Attach.apply(codes.values, codes.indices, x, weight, bias, shift)  # type: ignore[no-untyped-call]
    return Codes(values, codes.indices)


class _Decode(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, weight)
        if not kernels.usable(values, weight):
            return embedding_sum(values, indices, weight)
        out = values.new_zeros(values.shape[0], weight.shape[1])
        arrays = [kernels.array(t) for t in (values, indices, weight, out)]
        kernels.share(kernels.decode, kernels.even(len(out)), *arrays)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, weight = ctx.saved_tensors
        starts, order = latent_major(indices, weight.shape[0])
        if not kernels.usable(values, weight):
            return gathered_dots(weight, indices, g) * (values != 0), None, latent_product(starts, order, values, g)
        dweight, dvalues = gradients.take(weight.shape[0], weight.shape[1], like=weight), torch.zeros_like(values)
        arrays = [kernels.array(t) for t in (starts, order, values, weight, g, dweight, dvalues)]
        kernels.share(kernels.decode_backward, kernels.by_entries(arrays[0]), *arrays)
        if ctx.needs_input_grad[2]:
            return dvalues, None, dweight
        gradients.give(dweight)
        return dvalues, None, None


def sparse_decode(codes: Codes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Reconstruction [N, d_in] = Σ values · weight[indices] + bias; weight [width, d_in], bias [d_in] or None.

    Entries whose value is zero are padding: they add nothing and receive no gradient.
    """
    out: Tensor = _Decode.apply(codes.values, codes.indices, weight)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias
