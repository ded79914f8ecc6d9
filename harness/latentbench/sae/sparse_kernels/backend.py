"""What the sparse trainer asks of its kernels, and torch operations that do it on every device and for every type.

One method per product whose speed matters. N tokens with A entries each, `values` [N, A] and `indices` [N, A] int64; an
entry whose value is zero is padding: it adds nothing and receives no gradient. Encoder and decoder weights are
[width, d_in], one row per latent. The other backends fall back to torch's operations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from latentbench.sae.autoencoder import Codes
from latentbench.sae.memory import gradients, row_chunks, scratch


class Backend(ABC):
    """One implementation of the sparse products; all give the same results up to rounding."""

    name: str
    """As it stands in the record of a training."""

    @abstractmethod
    def top_rows(self, pre: Tensor, values: Tensor, indices: Tensor) -> None:
        """Writes the k largest of every row of `pre` [N, width] and their columns, descending; k from `values`."""

    def top_sums(self, product: Tensor, bias: Tensor, values: Tensor, indices: Tensor) -> None:
        """`top_rows` of `product` [N, width] + `bias` [width], added in the bias's type."""
        pre = scratch(len(product), product.shape[1], like=bias)
        self.top_rows(pre.copy_(product).add_(bias), values, indices)

    @abstractmethod
    def top_pairs(self, pre: Tensor, m: int, n: int, signed: bool, k: int, pruned: bool = True) -> Codes:
        """The k strongest pairs of `pre` [N, h(m + n)] (m base, then n extension entries per head), zero-padded.

        A pair's strength is ReLU(u) ReLU(v), or ReLU(u v) if `signed`. `pruned=False`: look at every pair.
        """

    @abstractmethod
    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        """Σ_a values[n, a] · weight[indices[n, a]]: [N, d_in]."""

    @abstractmethod
    def decode_backward(self, values: Tensor, indices: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (dvalues [N, A], dweight [width, d_in]) of `decode` for the gradient `g` [N, d_in] of its result."""

    @abstractmethod
    def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Gradients (dweight [width, d_in], dbias [width]) of values[n, a] = <weight[i], x[n]> + bias[i], i = indices[n, a]."""

    @abstractmethod
    def prefix_losses(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> Tensor:
        """Σ_r shares[n, r] ‖x_n − x̂_{n,r}‖² [N], x̂_{n,r} from the first r entries; shares [N or 1, A + 1].

        `reconstruction` [N, d_in] holds x̂_0 and is overwritten with x̂_A.
        """

    @abstractmethod
    def prefix_backward(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (dvalues, dweight, dbias [d_in]) of half the sum of `prefix_losses`; `reconstruction` is x̂_A.

        `dbias` is the gradient of an x̂_0 that all tokens share.
        """


GATHERED = 1 << 26
"""Largest number of gathered weights that exist at once."""


def latent_major(indices: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(starts [width + 1], order [entries]): the entries of latent l are order[starts[l] : starts[l + 1]]."""
    # Stable, so that a latent's entries stay in the order of tokens and are always added in the same one.
    sorted_latents, order = indices.reshape(-1).sort(stable=True)
    return torch.searchsorted(sorted_latents, torch.arange(width + 1, device=indices.device)), order


def latent_product(starts: Tensor, order: Tensor, values: Tensor, tokens: Tensor) -> Tensor:
    """Σ over a latent's entries of value · tokens[n]: [width, d_in], as one CSR product."""
    rows = order // values.shape[1]
    shape = (len(starts) - 1, tokens.shape[0])
    # The checks would look at every index, and on CUDA wait for the device; `latent_major` made them valid.
    matrix = torch.sparse_csr_tensor(starts, rows, values.reshape(-1)[order], shape, check_invariants=False)
    return matrix @ tokens


def gathered_dots(weight: Tensor, indices: Tensor, g: Tensor) -> Tensor:
    """<weight[indices[n, a]], g[n]> [N, A], gathered in chunks."""
    # All rows gathered at once would be [N, A, d_in], which is A times the batch.
    step = max(1, GATHERED // (indices.shape[1] * weight.shape[1]))
    parts = [slice(start, start + step) for start in range(0, len(g), step)]
    return torch.cat([torch.bmm(weight[indices[p]], g[p].unsqueeze(2)).squeeze(2) for p in parts])


def embedding_sum(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """Σ_a values[n, a] · weight[indices[n, a]] [N, d_in]."""
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


class TorchBackend(Backend):
    """Torch operations; on accelerators some of them add in no fixed order."""

    name = "torch"

    def top_rows(self, pre: Tensor, values: Tensor, indices: Tensor) -> None:
        torch.topk(pre, values.shape[1], dim=1, out=(values, indices))

    def top_pairs(self, pre: Tensor, m: int, n: int, signed: bool, k: int, pruned: bool = True) -> Codes:
        """All pairs of a few tokens exist for a moment: `pruned` changes nothing."""
        codes = Codes.empty(len(pre), k, like=pre)
        for part in row_chunks(len(pre), pre.shape[1] // (m + n) * m * n):
            heads = pre[part].view(len(pre[part]), -1, m + n)
            u, v = heads[..., :m, None], heads[..., None, m:]
            products = (u * v).relu() if signed else u.relu() * v.relu()
            torch.topk(products.flatten(1), k, dim=1, out=(codes.values[part], codes.indices[part]))
        return codes

    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        return embedding_sum(values, indices, weight)

    def decode_backward(self, values: Tensor, indices: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        starts, order = latent_major(indices, weight.shape[0])
        # The product with zero is exact, so padding adds nothing to `dweight`; its dot must be struck out by hand.
        return gathered_dots(weight, indices, g) * (values != 0), latent_product(starts, order, values, g)

    def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        starts, order = latent_major(indices, width)
        dbias = dvalues.new_zeros(width).index_add_(0, indices.reshape(-1), dvalues.reshape(-1))
        return latent_product(starts, order, dvalues, x), dbias

    def prefix_losses(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> Tensor:
        losses = shares[:, 0] * (x - reconstruction).pow(2).sum(1)
        for r in range(values.shape[1]):
            # One entry of every token at a time: memory stays [N, d_in] however many prefixes there are.
            reconstruction.addcmul_(values[:, r, None], weight[indices[:, r]])
            losses = losses + shares[:, r + 1] * (x - reconstruction).pow(2).sum(1)
        return losses

    def prefix_backward(
        self, values: Tensor, indices: Tensor, weight: Tensor, x: Tensor, shares: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dweight = gradients.take(weight.shape[0], weight.shape[1], like=weight).zero_()
        current = reconstruction - x
        dvalues, suffix = torch.zeros_like(values), torch.zeros_like(current)
        # `current` is x̂_{r+1} − x: subtracting atom r again gives x̂_r − x, so no prefix was kept from the forward
        # pass.
        for r in range(values.shape[1] - 1, -1, -1):
            rows, value = weight[indices[:, r]], values[:, r, None]
            suffix = suffix + shares[:, r + 1, None] * current
            dvalues[:, r] = (rows * suffix).sum(1) * (value[:, 0] != 0)
            dweight.index_add_(0, indices[:, r], value * suffix)
            current = current - value * rows
        return dvalues, dweight, (suffix + shares[:, :1] * current).sum(0)
