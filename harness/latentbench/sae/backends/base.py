"""What the sparse trainer asks of its kernels: one method per product whose speed matters.

N tokens with A entries each, `values` [N, A] and `indices` [N, A] int64; an entry whose value is zero is padding: it adds
nothing and receives no gradient. Encoder and decoder weights are [width, d_in], one row per latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from latentbench.sae.codes import Codes


class Backend(ABC):
    """One implementation of the sparse products; all give the same results up to rounding."""

    name: str
    """As it stands in the record of a training."""

    @abstractmethod
    def top_rows(self, pre: Tensor, values: Tensor, indices: Tensor) -> None:
        """Writes the k largest of every row of `pre` [N, width] and their columns, descending; k from `values`."""

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
