"""The sparse products on CUDA: starts the Triton kernels of `latentbench.sae.triton_kernels` and `triton_prefix_kernels`.

Selection stays with torch (`topk`, also over all pairs of KronSAE). The kernels agree with dense float64 references in
Triton's interpreter and compile for compute capability 8.0 and 9.0; nobody has run or timed them on a GPU yet, and the
sizes below are guesses. Importing this module imports Triton: `latentbench.sae.backends` does so when it is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentbench.sae import triton_kernels, triton_prefix_kernels
from latentbench.sae.backends.torch_ops import TorchBackend, latent_major
from latentbench.sae.memory import gradients

BLOCK_D = 512
"""Most dimensions that a program walks; more are shared out between programs."""
BLOCK_E = 8
"""Entries of a latent that a program reads at once."""
HELD = 4
"""How many sums of prefix gradients are kept per token: more need fewer passes over the batch and more memory."""
PER_WARP = 128
"""Numbers of a tile per warp, of which a program has at most `WARPS`: one wide load per thread."""
WARPS = 8


class Entries(NamedTuple):
    """Entries of the codes sorted by latent: starts [latents + 1], order, row of the vector they multiply, value [E]."""

    starts: Tensor
    order: Tensor
    rows: Tensor
    values: Tensor


def start(kernel: Any, programs: int, d: int, *arguments: Tensor | int, **sizes: int) -> None:
    """Runs `programs` × blocks of d programs of `kernel` on the device of the first argument.

    Whether products and sums are fused is fixed here, since Triton's default is not the same in all versions.
    """
    block = block_of(d)
    options = {"num_warps": warps(block * sizes.get("block_e", 1)), "enable_fp_fusion": True}
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[(programs, blocks(d))](*arguments, d, block_d=block, **sizes, **options)


def block_of(d: int) -> int:
    """The size of a block of dimensions: a power of two, as Triton's tiles must be."""
    return min(BLOCK_D, 1 << (d - 1).bit_length())


def warps(tile: int) -> int:
    """How many warps share a tile of so many numbers."""
    return max(1, min(WARPS, tile // PER_WARP))


def blocks(d: int) -> int:
    """How many blocks d dimensions make."""
    return -(-d // block_of(d))


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """What kernels may read: every tensor with rows one after the other."""
    return [t.detach().contiguous() for t in tensors]


def by_latent(values: Tensor, indices: Tensor, width: int) -> Entries:
    """The entries of codes [N, A], sorted; their row is their token. Padding comes last and belongs to no latent."""
    starts, order = latent_major(torch.where(values != 0, indices, width), width)
    return Entries(starts, order, order // values.shape[1], values.reshape(-1)[order])


class TritonBackend(TorchBackend):
    """Deterministic kernels on float32 or float64 tensors of one CUDA device."""

    name = "triton"

    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        values, indices, weight = contiguous(values, indices, weight)
        (tokens, active), d = values.shape, weight.shape[1]
        out = values.new_empty(tokens, d)
        start(triton_kernels.decode, tokens, d, values, indices, weight, out, active)
        return out

    def decode_backward(self, values: Tensor, indices: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, weight, g = contiguous(values, indices, weight, g)
        width, d = weight.shape
        starts, order, rows, sorted_values = by_latent(values, indices, width)
        dweight, dots = gradients.take(width, d, like=weight), values.new_zeros(blocks(d), values.numel())
        arguments = (starts, rows, sorted_values, weight, g, dweight, dots, values.numel())
        start(triton_kernels.decode_backward, width, d, *arguments, block_e=BLOCK_E)
        dvalues = torch.empty_like(values)
        dvalues.view(-1)[order] = dots.sum(0)
        return dvalues, dweight

    def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        dvalues, indices, x = contiguous(dvalues, indices, x)
        starts, _, rows, values = by_latent(dvalues, indices, width)
        dweight, dbias = gradients.take(width, x.shape[1], like=x), dvalues.new_empty(width)
        arguments = (starts, rows, values, x, dweight, dbias)
        start(triton_kernels.encode_backward, width, x.shape[1], *arguments, block_e=BLOCK_E)
        return dweight, dbias

    def prefix_losses(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> Tensor:
        values, indices, weight, x, shares = contiguous(values, indices, weight, x, shares)
        (tokens, active), d = values.shape, weight.shape[1]
        losses = values.new_empty(blocks(d), tokens)
        arguments = (values, indices, weight, x, shares, reconstruction, losses, active, share_stride(shares))
        start(triton_prefix_kernels.prefix_losses, tokens, d, *arguments)
        return losses.sum(0)

    def prefix_backward(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, indices, weight, shares = contiguous(values, indices, weight, shares)
        (tokens, active), (width, d) = values.shape, weight.shape
        current, walk = (reconstruction - x).contiguous(), Walk.of(values, indices, shares, width)
        suffix, held = torch.zeros_like(current), current.new_empty(tokens * HELD, d)
        dweight = gradients.take(width, d, like=weight).zero_()
        dots = values.new_empty(blocks(d), tokens, active)
        for low, high, starts in zip(walk.ends[1:], walk.ends, walk.starts, strict=False):
            state = (low, high, current, suffix, held, dots, active, share_stride(shares))
            arguments = (values, indices, weight, shares, walk.slots, *state)
            start(triton_prefix_kernels.prefix_sums, tokens, d, *arguments, per_token=HELD)
            sums = (starts, walk.rows, walk.values, held, dweight)
            start(triton_prefix_kernels.add_sums, width, d, *sums, block_e=BLOCK_E)
        return dots.sum(0), dweight, (suffix + shares[:, :1] * current).sum(0)


def share_stride(shares: Tensor) -> int:
    """Numbers between the shares of two tokens: none where all have the same."""
    return shares.shape[1] if len(shares) > 1 else 0


class Walk(NamedTuple):
    """The passes of `prefix_backward` over the batch, each as far back as `HELD` new sums last.

    An entry's sum is numbered by how many shares from it on are not zero, 1 for a token's last; 0: no gradient.
    """

    slots: Tensor
    """[N, A] where an entry's sum is held."""
    ends: list[Tensor]
    """Pass p walks token n's entries ends[p][n] − 1 down to ends[p + 1][n]."""
    starts: list[Tensor]
    """[width + 1] per pass: whose entries of latent l are rows and values[starts[l] : starts[l + 1]]."""
    rows: Tensor
    """[E] place n · HELD + slot of an entry's sum."""
    values: Tensor
    """[E]"""

    @staticmethod
    def of(values: Tensor, indices: Tensor, shares: Tensor, width: int) -> Walk:
        """The passes for codes [N, A] and shares [N or 1, A + 1]; waits for the device to count them."""
        numbers = (shares[:, 1:] != 0).flip(1).cumsum(1).flip(1).expand_as(values)
        passes = -(-int(numbers[:, 0].max()) // HELD)
        before = (numbers - 1).div(HELD, rounding_mode="floor")
        used = (numbers > 0) & (values != 0)
        starts, order = latent_major(torch.where(used, before * width + indices, passes * width), passes * width)
        slots = (numbers - 1).remainder(HELD).contiguous()
        tokens = torch.arange(len(values), device=values.device)[:, None]
        lows = [(before > p).sum(1) for p in range(max(1, passes))]
        return Walk(
            slots,
            [torch.full_like(lows[0], values.shape[1]), *lows],
            [starts[p * width : (p + 1) * width + 1] for p in range(passes)] or [starts.new_zeros(width + 1)],
            (tokens * HELD + slots).reshape(-1)[order],
            values.reshape(-1)[order],
        )
