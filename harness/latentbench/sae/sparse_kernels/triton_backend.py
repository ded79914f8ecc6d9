"""The sparse products on CUDA: Triton kernels, written from the formulas, and the backend that starts them.

Nothing is added atomically: every output is written by one program, which adds in a fixed order, so the same inputs give
the same bytes on the same device. Dimensions are walked in blocks of `block_d`, entries of a latent `block_e` at a time;
what lies beyond the end is masked, so that any d_in, width and number of entries fit. All tensors are contiguous. An entry
whose value is zero is padding: nothing is read for it, and its products are zero.

The backward pass of the loss over prefixes (formulas: `latentbench.sae.variants.topk`) un-adds atoms token by token, which
fixes S_r, the sum of the prefix gradients from r on. It changes only where a share is not zero, so few of its values serve
all entries between two budgets: `prefix_sums` writes the next `per_token` of them for every token, `add_sums` adds them up
latent by latent, and both start over where they stopped. Memory is O(N · d_in) whatever the budgets, and every atom is
read once.

Selection stays with torch (`topk`, also over all pairs of KronSAE). The kernels agree with dense float64 references in
Triton's interpreter and compile for compute capability 8.0 and 9.0; nobody has run or timed them on a GPU yet, and the
sizes below are guesses. Importing this module imports Triton: `latentbench.sae.sparse_kernels.dispatch` does so when it is
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from latentbench.sae.memory import gradients
from latentbench.sae.sparse_kernels.backend import TorchBackend, latent_major

BLOCK_D = 512
"""Most dimensions that a program walks; more are shared out between programs."""
BLOCK_E = 8
"""Entries of a latent that a program reads at once."""
HELD = 4
"""How many sums of prefix gradients are kept per token: more need fewer passes over the batch and more memory."""
PER_WARP = 128
"""Numbers of a tile per warp, of which a program has at most `WARPS`: one wide load per thread."""
WARPS = 8

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
    # Program ids are int32, but offsets are products with d, which exceed 2^31 in large batches and dictionaries.
    n = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    # In the type of the output: float64 checks of gradients must not be summed in float32.
    total = tl.zeros([block_d], dtype=out.dtype.element_ty)
    for a in range(active):
        value = tl.load(values + n * active + a)
        latent = tl.load(indices + n * active + a)
        # An empty mask in place of a branch: of padding's row no number is read.
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
    # The row is needed for the dots only; a latent without entries does not read it, but still writes its zeros.
    row = tl.load(weight + latent * d + columns, mask=columns < tl.where(first < end, d, 0), other=0.0)
    # One partial sum per place of the tile; they are added once at the end, so the loop holds no reduction over
    # entries.
    total = tl.zeros([block_e, block_d], dtype=dweight.dtype.element_ty)
    for e in range(first, end, block_e):
        value, vector = entries(rows, values, g, e, end, columns, d, block_e)
        total += value[:, None] * vector
        places = e + tl.arange(0, block_e)
        # A dot over part of the dimensions: the blocks of d are added up by the caller, in a fixed order and not
        # atomically.
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
    # All blocks of dimensions have the same sum; one of them writes it.
    tl.store(dbias + latent, tl.sum(bias, axis=0), mask=tl.program_id(1) == 0)


@kernel
def prefix_losses(
    values: tl.tensor,
    indices: tl.tensor,
    weight: tl.tensor,
    x: tl.tensor,
    shares: tl.tensor,
    reconstruction: tl.tensor,
    losses: tl.tensor,
    active: tl.tensor,
    share_stride: tl.tensor,
    d: tl.tensor,
    block_d: tl.constexpr,
) -> None:
    """losses[block, n] = Σ_r shares[n, r] ‖x_n − x̂_{n,r}‖² over the block's dimensions; x̂ grows in `reconstruction`.

    One program per token n and block. `share_stride`: 0 where all tokens have the same shares, otherwise A + 1.
    """
    n = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    target = tl.load(x + n * d + columns, mask=columns < d, other=0.0)
    current = tl.load(reconstruction + n * d + columns, mask=columns < d, other=0.0)
    # Squares stay spread over the dimensions and are added once at the end: one reduction a token, not one an entry.
    squares = tl.load(shares + n * share_stride) * (target - current) * (target - current)
    for a in range(active):
        value = tl.load(values + n * active + a)
        latent = tl.load(indices + n * active + a)
        read = tl.where(value != 0, d, 0)
        current += value * tl.load(weight + latent * d + columns, mask=columns < read, other=0.0)
        squares += tl.load(shares + n * share_stride + a + 1) * (target - current) * (target - current)
    tl.store(reconstruction + n * d + columns, current, mask=columns < d)
    tl.store(losses + tl.program_id(1).to(tl.int64) * tl.num_programs(0) + n, tl.sum(squares, axis=0))


@kernel
def prefix_sums(
    values: tl.tensor,
    indices: tl.tensor,
    weight: tl.tensor,
    shares: tl.tensor,
    slots: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    current: tl.tensor,
    suffix: tl.tensor,
    held: tl.tensor,
    dots: tl.tensor,
    active: tl.tensor,
    share_stride: tl.tensor,
    d: tl.tensor,
    block_d: tl.constexpr,
    per_token: tl.constexpr,
) -> None:
    """Walks token n's entries high[n] − 1 down to low[n]; one program per token and block of dimensions.

    `current` [N, d] is x̂_{a+1} − x before entry a and x̂_a − x after it, `suffix` [N, d] grows to S_{a+1}. Written:
    dots[block, n, a] = <weight[i], S_{a+1}>, and every new S to held[n, slot] [N, per_token, d], slot = slots[n, a].
    """
    n = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    now = tl.load(current + n * d + columns, mask=columns < d, other=0.0)
    sums = tl.load(suffix + n * d + columns, mask=columns < d, other=0.0)
    last, stop = tl.load(high + n), tl.load(low + n)
    own_dots = dots + tl.program_id(1).to(tl.int64) * tl.num_programs(0) * active
    # Counted upwards and turned round, since last and stop are known on the device only.
    for done in range(last - stop):
        place = n * active + last - 1 - done
        value, share = tl.load(values + place), tl.load(shares + n * share_stride + last - done)
        sums += share * now
        # Where the share is zero S does not change, and entries share the slot of the last change: nothing is written.
        slot = n * per_token + tl.load(slots + place)
        tl.store(held + slot * d + columns, sums, mask=columns < tl.where(share != 0, d, 0))
        read = tl.where(value != 0, d, 0)
        row = tl.load(weight + tl.load(indices + place) * d + columns, mask=columns < read, other=0.0)
        tl.store(own_dots + place, tl.sum(row * sums, axis=0))
        now -= value * row
    tl.store(current + n * d + columns, now, mask=columns < d)
    tl.store(suffix + n * d + columns, sums, mask=columns < d)


@kernel
def add_sums(
    starts: tl.tensor,
    rows: tl.tensor,
    values: tl.tensor,
    held: tl.tensor,
    dweight: tl.tensor,
    d: tl.tensor,
    block_d: tl.constexpr,
    block_e: tl.constexpr,
) -> None:
    """dweight[l] += Σ_e values[e] · held[rows[e]]; one program per latent l and block of dimensions."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    first, end = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros([block_e, block_d], dtype=dweight.dtype.element_ty)
    for e in range(first, end, block_e):
        value, vector = entries(rows, values, held, e, end, columns, d, block_e)
        total += value[:, None] * vector
    # Passes add to the same rows one after the other; latents without entries in this one are left alone.
    changed = columns < tl.where(first < end, d, 0)
    before = tl.load(dweight + latent * d + columns, mask=changed, other=0.0)
    tl.store(dweight + latent * d + columns, before + tl.sum(total, axis=0), mask=changed)


class SortedEntries(NamedTuple):
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


def by_latent(values: Tensor, indices: Tensor, width: int) -> SortedEntries:
    """The entries of codes [N, A], sorted; their row is their token. Padding comes last and belongs to no latent."""
    # As latent `width`, padding sorts behind the last latent's end: no program ever looks at it.
    starts, order = latent_major(torch.where(values != 0, indices, width), width)
    return SortedEntries(starts, order, order // values.shape[1], values.reshape(-1)[order])


class TritonBackend(TorchBackend):
    """Deterministic kernels on float32 or float64 tensors of one CUDA device."""

    name = "triton"

    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        values, indices, weight = contiguous(values, indices, weight)
        (tokens, active), d = values.shape, weight.shape[1]
        out = values.new_empty(tokens, d)
        start(decode, tokens, d, values, indices, weight, out, active)
        return out

    def decode_backward(self, values: Tensor, indices: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, weight, g = contiguous(values, indices, weight, g)
        width, d = weight.shape
        starts, order, rows, sorted_values = by_latent(values, indices, width)
        dweight, dots = gradients.take(width, d, like=weight), values.new_zeros(blocks(d), values.numel())
        arguments = (starts, rows, sorted_values, weight, g, dweight, dots, values.numel())
        start(decode_backward, width, d, *arguments, block_e=BLOCK_E)
        # `order` is a permutation of all entries, padding included, whose dots nobody wrote: they must start at zero.
        dvalues = torch.empty_like(values)
        dvalues.view(-1)[order] = dots.sum(0)
        return dvalues, dweight

    def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        dvalues, indices, x = contiguous(dvalues, indices, x)
        starts, _, rows, values = by_latent(dvalues, indices, width)
        dweight, dbias = gradients.take(width, x.shape[1], like=x), dvalues.new_empty(width)
        arguments = (starts, rows, values, x, dweight, dbias)
        start(encode_backward, width, x.shape[1], *arguments, block_e=BLOCK_E)
        return dweight, dbias

    def prefix_losses(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> Tensor:
        values, indices, weight, x, shares = contiguous(values, indices, weight, x, shares)
        (tokens, active), d = values.shape, weight.shape[1]
        losses = values.new_empty(blocks(d), tokens)
        arguments = (values, indices, weight, x, shares, reconstruction, losses, active, share_stride(shares))
        start(prefix_losses, tokens, d, *arguments)
        return losses.sum(0)

    def prefix_backward(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, indices, weight, shares = contiguous(values, indices, weight, shares)
        (tokens, active), (width, d) = values.shape, weight.shape
        current, walk = (reconstruction - x).contiguous(), PrefixPasses.of(values, indices, shares, width)
        suffix, held = torch.zeros_like(current), current.new_empty(tokens * HELD, d)
        dweight = gradients.take(width, d, like=weight).zero_()  # `add_sums` adds to it, pass by pass
        dots = values.new_empty(blocks(d), tokens, active)
        # `current` and `suffix` carry a token's state from one pass to the next.
        for low, high, starts in zip(walk.ends[1:], walk.ends, walk.starts, strict=False):
            state = (low, high, current, suffix, held, dots, active, share_stride(shares))
            arguments = (values, indices, weight, shares, walk.slots, *state)
            start(prefix_sums, tokens, d, *arguments, per_token=HELD)
            sums = (starts, walk.rows, walk.values, held, dweight)
            start(add_sums, width, d, *sums, block_e=BLOCK_E)
        return dots.sum(0), dweight, (suffix + shares[:, :1] * current).sum(0)


def share_stride(shares: Tensor) -> int:
    """Numbers between the shares of two tokens: none where all have the same."""
    return shares.shape[1] if len(shares) > 1 else 0


class PrefixPasses(NamedTuple):
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
    def of(values: Tensor, indices: Tensor, shares: Tensor, width: int) -> PrefixPasses:
        """The passes for codes [N, A] and shares [N or 1, A + 1]; waits for the device to count them."""
        # How many shares from an entry on are not zero: constant between two budgets, and falling to the right.
        numbers = (shares[:, 1:] != 0).flip(1).cumsum(1).flip(1).expand_as(values)
        # The only wait for the device: the number of launches must be known here.
        passes = -(-int(numbers[:, 0].max()) // HELD)
        before = (numbers - 1).div(HELD, rounding_mode="floor")
        used = (numbers > 0) & (values != 0)
        # One sort for all passes: the key is the pass first, then the latent; unused entries get the key behind all
        # others.
        starts, order = latent_major(torch.where(used, before * width + indices, passes * width), passes * width)
        slots = (numbers - 1).remainder(HELD).contiguous()
        tokens = torch.arange(len(values), device=values.device)[:, None]
        # `before` falls along a token, so what later passes hold is a prefix of its entries, and counting gives its
        # end.
        lows = [(before > p).sum(1) for p in range(max(1, passes))]
        return PrefixPasses(
            slots,
            [torch.full_like(lows[0], values.shape[1]), *lows],
            [starts[p * width : (p + 1) * width + 1] for p in range(passes)] or [starts.new_zeros(width + 1)],
            (tokens * HELD + slots).reshape(-1)[order],
            values.reshape(-1)[order],
        )
