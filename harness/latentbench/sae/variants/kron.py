"""KronSAE: TopK, BatchTopK or JumpReLU over pairwise ANDs of a small encoder's outputs (arXiv 2505.22255).

Latents are products of a base and an extension pre-activation of the same head (§3).
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from latentbench.sae.autoencoder import Codes
from latentbench.sae.dictionary import Objective, SparseDictionarySAE, squared_error
from latentbench.sae.encoders import Encoder, selection, subtract_detached, top_of_batch, unit_rows
from latentbench.sae.memory import row_chunks
from latentbench.sae.options.kron import KronJumpReLUOptions, KronOptions
from latentbench.sae.sparse_kernels.autograd import attach, preactivations
from latentbench.sae.sparse_kernels.dispatch import backend
from latentbench.sae.variants.penalised import ThresholdedSAE
from latentbench.sae.variants.topk import BudgetLoss, GroupLoss

Kernel = Literal["mand", "relu_product", "product"]
MIN_PRODUCT = 1e-12
"""Smallest product under the square root: bounds the gradient of mAND near zero."""
INITIAL_L0_FACTOR = 4
"""First guess of the largest L0 above a threshold, as a multiple of the number the latents are trained for."""


def combine(u: Tensor, v: Tensor, kernel: Kernel) -> Tensor:
    """Activation of pairs: mAND √(u v) or ReLU(u) ReLU(v), both zero unless u and v are positive; or ReLU(u v).

    Where a pair is inactive the value is exactly zero and so is the gradient; no epsilon leaks into inactive pairs.
    """
    if kernel == "product":
        return (u * v).relu()
    # `where` before the root and again after it: a root of zero has an infinite gradient, which times zero is NaN.
    active = (u > 0) & (v > 0)
    product = torch.where(active, u * v, 0)
    if kernel == "relu_product":
        return product
    return torch.where(active, product.clamp_min(MIN_PRODUCT).sqrt(), 0)


class KronEncoder(Encoder):
    """h heads of m base rows P and n extension rows Q: latent (head, i, j) = kernel(P_i x, Q_j x), width h·m·n.

    `weight` [h(m + n), d_in] holds each head's m base rows, then its n extension rows; `bias` [h(m + n)].
    """

    def __init__(
        self, d_in: int, heads: int, m: int, n: int, kernel: Kernel, k: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads, self.m, self.n, self.kernel, self.k = heads, m, n, kernel, k
        self.width = heads * m * n
        rows = torch.randn(heads * (m + n), d_in, generator=generator) / sqrt(2 * self.width)
        self.weight = nn.Parameter(rows)
        self.bias = nn.Parameter(torch.zeros(len(rows)))

    def parents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `weight` whose product each latent is: (base, extension)."""
        head, inner = latents // (self.m * self.n), latents % (self.m * self.n)
        start = head * (self.m + self.n)
        return start + inner // self.n, start + self.m + inner % self.n

    def top(self, x: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        pre = preactivations(x, self.weight, self.bias)
        return self._active(self.strongest(pre, k), pre, x, shift)

    def top_of_batch(
        self, x: Tensor, total: int, shift: Tensor | None = None, group: ProcessGroup = SINGLE_PROCESS
    ) -> Codes:
        x = subtract_detached(x, shift)
        pre = preactivations(x, self.weight, self.bias)
        codes = top_of_batch(partial(self.strongest, pre), len(x), self.width, total, group)
        return self._active(codes, pre, x, shift)

    @torch.no_grad()
    def above(self, x: Tensor, threshold: Tensor, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        pre = preactivations(x, self.weight, self.bias)
        # Unlike a linear encoder's, pairs are too many to look at all: the strongest are taken until none more can
        # pass.
        most = min(self.width, INITIAL_L0_FACTOR * self.k)
        while True:
            codes = self._active(self.strongest(pre, most), pre, x, shift)
            if most == self.width or not bool((codes.values[:, -1] > threshold).any()):
                return _above(codes, threshold)
            most = min(self.width, 4 * most)

    @torch.no_grad()
    def strongest(self, pre: Tensor, k: int, pruned: bool = True) -> Codes:
        """The k strongest pairs per token of pre-activations [N, h(m + n)]: their products, descending, zero-padded.

        `pruned=False` looks at every pair; the result is the same. Only CPU kernels prune: elsewhere, also on CUDA,
        all pairs of some tokens exist for a moment.
        """
        return backend(pre).top_pairs(pre, self.m, self.n, self.kernel == "product", k, pruned)

    def some(self, x: Tensor, latents: Tensor, shift: Tensor | None = None) -> Tensor:
        pre = F.linear(x if shift is None else x - shift, self.weight, self.bias)
        base, extension = self.parents(latents)
        return combine(pre[:, base], pre[:, extension], self.kernel)

    def every(self, x: Tensor) -> Tensor:
        """Dense activations [N, width] of all pairs."""
        heads = F.linear(x, self.weight, self.bias).reshape(len(x), self.heads, self.m + self.n)
        return combine(heads[..., : self.m, None], heads[..., None, self.m :], self.kernel).flatten(1)

    def top_among(self, x: Tensor, latents: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        pre = preactivations(x, self.weight, self.bias)
        found = Codes.empty(len(x), k, like=pre)
        # Ranked by the products, as in `strongest`: rounding of the square root must not decide.
        ranking: Kernel = "product" if self.kernel == "product" else "relu_product"
        for part in row_chunks(len(x), len(latents)):
            u, v = (pre[part][:, rows] for rows in self.parents(latents))
            products = combine(u, v, ranking)
            backend(products).top_rows(products, found.values[part], found.indices[part])
        return self._active(Codes(found.values, latents[found.indices]), pre, x, shift)

    def initial_decoder(self) -> Tensor:
        rows = self.weight.detach().view(self.heads, self.m + self.n, -1)
        # A latent that fires where P_i x and Q_j x are both large should write in both directions.
        pairs = rows[:, : self.m, None] + rows[:, None, self.m :]
        return unit_rows(pairs.reshape(self.width, -1))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        if self.kernel == "mand":
            # √(u v) is of degree one in x, as a linear encoder's activations are.
            self.bias.div_(scale)
        else:  # degree two: u and v must each become 1/√scale of what they were
            self.weight.mul_(sqrt(scale))
            self.bias.div_(sqrt(scale))

    def _active(self, codes: Codes, pre: Tensor, x: Tensor, shift: Tensor | None) -> Codes:
        # Gradients go to the 2 k rows that the selected pairs are products of, not to pairs.
        rows = torch.cat(self.parents(codes.indices), dim=1)
        selected = attach(Codes(pre.gather(1, rows), rows), x, self.weight, self.bias, shift)
        # Padding has parents too (those of latent 0), which must neither count nor learn.
        u, v = selected.values.chunk(2, dim=1)
        return Codes(combine(u, v, self.kernel).masked_fill(codes.values == 0, 0), codes.indices)


def _above(codes: Codes, threshold: Tensor) -> Codes:
    kept = codes.values > threshold
    active = max(1, int(kept.sum(1).max())) if len(kept) else 1
    return Codes((codes.values * kept)[:, :active], codes.indices[:, :active])


class Kron(SparseDictionarySAE):
    """The encoder reads x itself (not x − b_dec); decoder rows start as P_i + Q_j, normalised (App. H)."""

    centred = False

    def __init__(self, options: KronOptions, d_in: int, generator: torch.Generator) -> None:
        o = options
        encoder = KronEncoder(d_in, o.head_count, o.m, o.n, o.kernel, o.k, generator)
        chosen = selection("batch_topk" if o.selection == "batch_topk" else "topk", o.k, o.threshold_momentum)
        super().__init__(o, encoder, encoder.initial_decoder(), chosen, _objective(o))


def _objective(options: KronOptions) -> Objective:
    if options.selection == "hierarchical":
        return BudgetLoss(options.budgets or tuple(range(1, options.k + 1)))
    # Groups consist of whole heads, so that a smaller dictionary needs no row of a larger one.
    return squared_error if options.groups is None else GroupLoss(tuple(accumulate(options.groups)))


class KronJumpReLU(ThresholdedSAE):
    """All pairs above learned thresholds; like every variant with thresholds trained with all latents' gradients.

    The encoder reads x itself, and decoder rows start as P_i + Q_j, normalised, as in `Kron`.
    """

    def __init__(self, options: KronJumpReLUOptions, d_in: int, generator: torch.Generator) -> None:
        o = options
        encoder = KronEncoder(d_in, o.head_count, o.m, o.n, o.kernel, 1, generator)
        super().__init__(encoder.initial_decoder())
        self.encoder, self.warmup = encoder, o.sparsity_warmup
        self.add_thresholds(o)

    def activations(self, x: Tensor) -> Tensor:
        return self.encoder.every(x)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        super().fold_input_scale(scale)
        self.encoder.fold_input_scale(scale)
