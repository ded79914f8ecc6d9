"""Triton kernels for the loss over prefixes of the active latents; see `latentbench.sae.prefixes` for the formulas.

The backward pass un-adds atoms token by token, which fixes S_r, the sum of the prefix gradients from r on. It changes
only where a share is not zero, so few of its values serve all entries between two budgets: `prefix_sums` writes the next
`per_token` of them for every token, `add_sums` adds them up latent by latent, and both start over where they stopped. Memory
is O(N · d_in) whatever the budgets, nothing is added atomically, and every atom is read once.
"""

from __future__ import annotations

import triton.language as tl

from latentbench.sae.triton_kernels import entries, kernel


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
    for done in range(last - stop):
        place = n * active + last - 1 - done
        value, share = tl.load(values + place), tl.load(shares + n * share_stride + last - done)
        sums += share * now
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
    changed = columns < tl.where(first < end, d, 0)
    before = tl.load(dweight + latent * d + columns, mask=changed, other=0.0)
    tl.store(dweight + latent * d + columns, before + tl.sum(total, axis=0), mask=changed)
