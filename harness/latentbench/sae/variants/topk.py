"""The TopK family: TopK, AbsTopK, Multi-TopK, BatchTopK, HierarchicalTopK and Matryoshka, and the loss over prefixes of the
active latents.

TopK: z = TopK(ReLU(W_enc (x − b_dec) + b_enc)) (Gao et al. 2024, arXiv 2406.04093). AbsTopK: the k entries of largest
magnitude, without the ReLU (arXiv 2510.00404). Multi-TopK: L(k) + L(4k) / 8 (Gao et al. 2024). BatchTopK: the strongest N·k latents
of a batch of N tokens; a global threshold afterwards (arXiv 2412.06410). HierarchicalTopK: the loss averages the error over
budgets j ≤ k (arXiv 2505.24473). Matryoshka: nested dictionaries of growing size, each reconstructing by itself (arXiv
2503.17547).

The last two have a loss over prefixes, with O(N · d_in) memory: L = 1/N Σ_n Σ_r shares[n, r] ‖x_n − x̂_{n,r}‖², where
x̂_{n,r} = b + Σ_{a ≤ r} v_a W[i_a] uses the first r entries. The backward pass recovers x̂_{r−1} by subtracting the r-th atom
again (HierarchicalTopK, §3): with S_r = Σ_{j ≥ r} ∂L/∂x̂_j: ∂L/∂W[i_r] += v_r S_r, ∂L/∂v_r = <W[i_r], S_r>, ∂L/∂b = S_0. The
target x has no gradient.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from latentbench.sae.autoencoder import Codes, TrainingLoss
from latentbench.sae.dictionary import Fit, SparseDictionarySAE, squared_error
from latentbench.sae.encoders import BatchSelection, LinearEncoder, SignedEncoder, TokenSelection, selection
from latentbench.sae.options.topk import (
    AbsTopKOptions,
    BatchTopKOptions,
    HierarchicalTopKOptions,
    MatryoshkaOptions,
    MultiTopKOptions,
    TopKOptions,
)
from latentbench.sae.sparse_kernels.dispatch import backend


class _PrefixLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        reconstruction = x.new_zeros(x.shape) if bias is None else bias.detach().repeat(len(x), 1)
        losses = backend(values, weight, x).prefix_losses(values, indices, weight, x, shares, reconstruction)
        ctx.save_for_backward(values, indices, weight, x, shares, reconstruction)
        # It is returned for AuxK's target, which has no gradient, and is the state that the backward pass un-adds from.
        ctx.mark_non_differentiable(reconstruction)
        return losses.sum() / len(x), reconstruction

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, weight, x, shares, reconstruction = ctx.saved_tensors
        # `prefix_backward` differentiates half the squared error; the two and the mean over tokens go into the shares.
        scaled = shares * (2 * dloss / len(x))
        tensors = (values, indices, weight, x, scaled, reconstruction)
        dvalues, dweight, dbias = backend(values, weight, x).prefix_backward(*tensors)
        return dvalues, None, dweight, dbias if ctx.needs_input_grad[3] else None, None, None


def prefix_loss(codes: Codes, weight: Tensor, bias: Tensor | None, x: Tensor, shares: Tensor) -> Fit:
    """The loss over prefixes of `codes` [N, A] and the error of the full reconstruction.

    weight [width, d_in], bias [d_in] or None, x [N, d_in]; shares [N or 1, A + 1]: weight of the prefix of each
    length 0..A. Entries whose value is zero are padding.
    """
    tensors = (codes.values, codes.indices, weight, bias, x, shares)
    loss, reconstruction = _PrefixLoss.apply(*tensors)  # type: ignore[no-untyped-call]
    return Fit(loss, x - reconstruction)


class BudgetLoss:
    """Mean squared error over budgets: the first j of the descending codes (HierarchicalTopK, arXiv 2505.24473)."""

    def __init__(self, budgets: tuple[int, ...]) -> None:
        self.budgets = budgets

    def __call__(self, codes: Codes, decoder: Tensor, bias: Tensor | None, x: Tensor) -> Fit:
        active = codes.values.shape[1]
        shares = x.new_zeros(1, active + 1)
        # A batch may have fewer active latents than a budget, whose prefix is then all of them.
        ends = torch.tensor(self.budgets, device=x.device).clamp_max(active)
        shares[0].index_add_(0, ends, shares.new_full((len(ends),), 1 / len(ends)))
        return prefix_loss(codes, decoder, bias, x, shares)


class GroupLoss:
    """Mean squared error over nested dictionaries: latents 0..end for each of `ends` (Matryoshka, 2503.17547)."""

    def __init__(self, ends: tuple[int, ...]) -> None:
        self.ends = ends

    def __call__(self, codes: Codes, decoder: Tensor, bias: Tensor | None, x: Tensor) -> Fit:
        # Nested dictionaries are prefixes of the latents' numbers, so codes are put in that order, with padding last.
        place = codes.indices.masked_fill(codes.values == 0, decoder.shape[0])
        place, order = place.sort(dim=1)
        ordered = Codes(codes.values.gather(1, order), codes.indices.gather(1, order))
        counts = torch.stack([(place < end).sum(1) for end in self.ends], dim=1)
        shares = x.new_zeros(len(x), place.shape[1] + 1)
        # Two groups of which a token has no latent in between end at the same prefix: their shares add up.
        shares.scatter_add_(1, counts, shares.new_full(counts.shape, 1 / len(self.ends)))
        return prefix_loss(ordered, decoder, bias, x, shares)


class TopK(SparseDictionarySAE):
    """The k strongest latents of every token; decoder rows start as the encoder's unit rows."""

    def __init__(self, options: TopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        super().__init__(options, encoder, encoder.initial_decoder(), TokenSelection(options.k), squared_error)


class AbsTopK(SparseDictionarySAE):
    """Like TopK, by magnitude: activations may be negative. AuxK revives by magnitude too."""

    def __init__(self, options: AbsTopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = SignedEncoder(d_in, options.width, generator)
        super().__init__(options, encoder, encoder.initial_decoder(), TokenSelection(options.k), squared_error)


class MultiTopK(SparseDictionarySAE):
    """L(k) + weight · L(multiple · k), where L(j) is the squared error of the j strongest latents.

    What counts as active, as reconstruction and as the error that AuxK revives for is that of k latents.
    """

    def __init__(self, options: MultiTopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        super().__init__(options, encoder, encoder.initial_decoder(), TokenSelection(options.k), squared_error)
        self.k, self.most, self.weight = options.k, options.multiple * options.k, options.multiple_weight

    def loss_on(self, x: Tensor, target: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        many = self.encoder.top(x, self.most, self.shift)
        codes = Codes(many.values[:, : self.k].contiguous(), many.indices[:, : self.k].contiguous())
        fit, wider = (self.objective(c, self.W_dec, self.b_dec, target) for c in (codes, many))
        further = self.weight * wider.loss + self.revival(x, target, fit.error, dead)
        return TrainingLoss(fit.loss + further, fit.loss.detach(), further.detach(), codes.firing_counts(self.width))


class BatchTopK(SparseDictionarySAE):
    """Like TopK, with the number of active latents free to differ between tokens."""

    def __init__(self, options: BatchTopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        selection = BatchSelection(options.k, options.threshold_momentum)
        super().__init__(options, encoder, encoder.initial_decoder(), selection, squared_error)


class HierarchicalTopK(SparseDictionarySAE):
    """One set of weights for every budget: `encode(x, j)` keeps the j strongest latents."""

    def __init__(self, options: HierarchicalTopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        objective = BudgetLoss(options.budgets or tuple(range(1, options.k + 1)))
        super().__init__(options, encoder, encoder.initial_decoder(), TokenSelection(options.k), objective)


class Matryoshka(SparseDictionarySAE):
    """The loss averages the error of the first groups' latents over the number of groups used."""

    def __init__(self, options: MatryoshkaOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        chosen = selection(options.selection, options.k, options.threshold_momentum)
        objective = GroupLoss(tuple(accumulate(options.groups)))
        super().__init__(options, encoder, encoder.initial_decoder(), chosen, objective)
