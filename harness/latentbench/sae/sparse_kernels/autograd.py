"""Sparse encoder and decoder products with hand-written gradients: only selected latents are touched.

Pre-activations are computed without an autograd graph and only to choose latents; the chosen values then get their
gradients from `attach`. No other tensor of shape [batch, width] exists, and no dense latents. Weights are stored as
one contiguous row per latent: encoder [width, d_in], decoder [width, d_in].

Which backend computes the products is decided in `latentbench.sae.sparse_kernels.dispatch`: numba kernels on CPUs, Triton
kernels on CUDA, torch operations elsewhere, with the same results up to rounding. On CUDA the selection itself stays with
torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from latentbench.core.errors import InvalidInput
from latentbench.sae.autoencoder import Codes
from latentbench.sae.memory import gradients, row_chunks, scratch
from latentbench.sae.sparse_kernels.backend import embedding_sum
from latentbench.sae.sparse_kernels.dispatch import backend


def top_linear(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Codes:
    """The k largest of `weight · x + bias` per token, descending, without gradients.

    x [N, d_in], weight [width, d_in], bias [width]; equal pre-activations: the lower latent number wins on CPU.
    Raises InvalidInput when k exceeds the width.
    """
    check_active(k, weight)
    codes = Codes.empty(x.shape[0], k, like=x)
    # In pieces: the pre-activations of a whole batch, [N, width], would be the largest tensor of a step by far.
    with torch.no_grad():
        if (low := _low_type(x)) is not None:
            _top_rounded(x, weight, bias, low, codes)
            return codes
        for part in row_chunks(x.shape[0], weight.shape[0]):
            pre = preactivations(x[part], weight, bias)
            backend(pre).top_rows(pre, codes.values[part], codes.indices[part])
    return codes


def top_magnitudes(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Codes:
    """The k entries of `weight · x + bias` of largest magnitude per token, with their signs, without gradients.

    Descending by magnitude; shapes, ties and errors as in `top_linear`.
    """
    check_active(k, weight)
    codes = Codes.empty(x.shape[0], k, like=x)
    with torch.no_grad():
        for part in row_chunks(x.shape[0], weight.shape[0]):
            pre = preactivations(x[part], weight, bias)
            # Beside the pre-activations, whose signs are still needed once the magnitudes are ranked.
            magnitudes = torch.abs(pre, out=scratch(pre.shape[0], pre.shape[1], like=pre, use="magnitudes"))
            backend(pre).top_rows(magnitudes, codes.values[part], codes.indices[part])
            codes.values[part] = pre.gather(1, codes.indices[part])
    return codes


def check_active(k: int, weight: Tensor) -> None:
    """Raises InvalidInput when k exceeds the width: the kernels do not check it and would read beyond the row."""
    if k > weight.shape[0]:
        raise InvalidInput(f"{k} active latents cannot exceed the dictionary width {weight.shape[0]}")


ROUNDED_CHUNK = 1 << 22
"""Pre-activations of sixteen bits that exist at once: few enough that selection finds them in a processor's cache."""


def _top_rounded(x: Tensor, weight: Tensor, bias: Tensor, low: torch.dtype, codes: Codes) -> None:
    """Writes the largest of `weight · x + bias` to `codes`; the product is computed and rounded in type `low`."""
    x, weight, bias = x.detach().to(low), _rounded(weight, low), bias.detach()
    most = ROUNDED_CHUNK if x.device.type == "cpu" else None
    for part in row_chunks(x.shape[0], weight.shape[0], most):
        product = scratch(len(x[part]), weight.shape[0], like=x)
        torch.mm(x[part], weight.t(), out=product)
        backend(bias).top_sums(product, bias, codes.values[part], codes.indices[part])


def _rounded(weight: Tensor, low: torch.dtype) -> Tensor:
    """A copy of the weights of type `low`, in a buffer that the next call overwrites."""
    like = torch.empty(0, dtype=low, device=weight.device)
    return scratch(len(weight), weight.shape[1], like=like, use="weights").copy_(weight.detach())


def _low_type(x: Tensor) -> torch.dtype | None:
    """The type in which `torch.autocast` computes products of `x`; None where it is not switched on."""
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else None


def preactivations(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`weight · x + bias` [N, width] in a buffer that the next call overwrites; no gradients.

    Under `torch.autocast` the product is computed in its type and returned in that of `x`: what is selected from it, and the
    values that were selected, differ from exact ones by the rounding of one product.
    """
    out = scratch(x.shape[0], weight.shape[0], like=x)
    if (low := _low_type(x)) is None:
        return torch.addmm(bias.detach(), x.detach(), weight.detach().t(), out=out)
    product = scratch(x.shape[0], weight.shape[0], like=torch.empty(0, dtype=low, device=x.device))
    torch.mm(x.detach().to(low), _rounded(weight, low).t(), out=product)
    return out.copy_(product).add_(bias.detach())


class _Attach(Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None
    ) -> Tensor:
        # bias and shift are arguments only because autograd hands gradients to arguments: the values hold both already.
        ctx.save_for_backward(indices, x, weight)
        ctx.shifted = shift is not None
        return values.clone()

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
        indices, x, weight = ctx.saved_tensors
        dvalues = dvalues.contiguous()
        dweight, dbias = backend(dvalues, x).encode_backward(dvalues, indices, x, weight.shape[0])
        dx = embedding_sum(dvalues, indices, weight) if ctx.needs_input_grad[2] else None
        # The shift enters every pre-activation as −W · shift, so its gradient needs only what the bias already summed
        # up.
        dshift = -(dbias @ weight) if ctx.shifted and ctx.needs_input_grad[5] else None
        return None, None, dx, dweight, dbias, dshift


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
        return backend(values, weight).decode(values, indices, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, weight = ctx.saved_tensors
        dvalues, dweight = backend(values, weight).decode_backward(values, indices, weight, g)
        if ctx.needs_input_grad[2]:
            return dvalues, None, dweight
        # A frozen decoder: the kernels compute both gradients together, and this one nobody wants.
        gradients.give(dweight)
        return dvalues, None, None


def sparse_decode(codes: Codes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Reconstruction [N, d_in] = Σ values · weight[indices] + bias; weight [width, d_in], bias [d_in] or None.

    Entries whose value is zero are padding: they add nothing and receive no gradient.
    """
    out: Tensor = _Decode.apply(codes.values, codes.indices, weight)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias
