"""The sparse products on CPUs: parallel numba kernels whose results do not depend on the number of threads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentbench.sae import kernels, pair_kernels, prefix_kernels
from latentbench.sae.backends.base import Backend
from latentbench.sae.codes import Codes
from latentbench.sae.kernels import Array, array
from latentbench.sae.memory import gradients


class NumbaBackend(Backend):
    """`latentbench.sae.kernels`, `pair_kernels` and `prefix_kernels` on float32 or float64 tensors in CPU memory."""

    name = "numba"

    def top_rows(self, pre: Tensor, values: Tensor, indices: Tensor) -> None:
        kernels.share(kernels.top_rows, kernels.even(len(pre)), array(pre), array(values), array(indices))

    def top_pairs(self, pre: Tensor, m: int, n: int, signed: bool, k: int, pruned: bool = True) -> Codes:
        codes = Codes.empty(len(pre), k, like=pre)
        arguments = (array(pre), m, n, signed, pruned, *map(array, codes))
        kernels.share(pair_kernels.top_pairs, kernels.even(len(pre)), *arguments)
        return codes

    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        out = values.new_zeros(values.shape[0], weight.shape[1])
        kernels.share(kernels.decode, kernels.even(len(out)), *map(array, (values, indices, weight, out)))
        return out

    def decode_backward(self, values: Tensor, indices: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        starts, order = _latent_major(indices, weight.shape[0])
        dweight, dvalues = gradients.take(weight.shape[0], weight.shape[1], like=weight), torch.zeros_like(values)
        arrays = map(array, (values, weight, g, dweight, dvalues))
        kernels.share(kernels.decode_backward, kernels.by_entries(starts), starts, order, *arrays)
        return dvalues, dweight

    def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        starts, order = _latent_major(indices, width)
        dweight, dbias = gradients.take(width, x.shape[1], like=x), dvalues.new_empty(width)
        arrays = map(array, (dvalues, x, dweight, dbias))
        kernels.share(kernels.encode_backward, kernels.by_entries(starts), starts, order, *arrays)
        return dweight, dbias

    def prefix_losses(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> Tensor:
        losses = values.new_empty(len(x))
        arrays = map(array, (values, indices, weight, x, shares, reconstruction, losses))
        kernels.share(prefix_kernels.prefix_loss, kernels.even(len(x)), *arrays)
        return losses

    def prefix_backward(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dweight = gradients.take(weight.shape[0], weight.shape[1], like=weight).zero_()
        slices = -(-x.shape[1] // prefix_kernels.SLICE)
        dvalues, dbias = values.new_zeros(slices, *values.shape), x.new_zeros(x.shape[1])
        tensors = (values, indices, weight, x, shares, reconstruction, dweight, dvalues, dbias)
        kernels.share(prefix_kernels.prefix_backward, kernels.even(slices), *map(array, tensors))
        return dvalues.sum(0), dweight, dbias


def _latent_major(indices: Tensor, width: int) -> tuple[Array, Array]:
    """`torch_ops.latent_major` by counting."""
    flat = indices.reshape(-1)
    starts, order = np.zeros(width + 1, np.int64), np.empty(flat.numel(), np.int64)
    kernels.count_sort(array(flat), starts, order)
    return starts, order
