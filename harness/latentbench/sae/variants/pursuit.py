"""Matching pursuit: latents are chosen one after another, each for what the earlier ones leave (MP-SAE, arXiv 2506.03093).

Encoder and decoder are the same rows W [width, d_in] of unit norm. With r_0 = x − b_dec, step t takes the row of largest
inner product with what is left: i_t = argmax_i <W[i], r_{t−1}>, v_t = ReLU <W[i_t], r_{t−1}>, r_t = r_{t−1} − v_t W[i_t]. So
x̂ = x − r_k, and the loss is ‖r_k‖². The same definition as sae-lens', run for exactly k steps.

The gradient goes through all steps, with O(N · d_in) memory: the backward pass recovers r_{t−1} by adding the t-th atom again.
With g_t = ∂L/∂r_t and s_t = −<g_t, W[i_t]> where v_t > 0: ∂L/∂W[i_t] += s_t r_{t−1} − v_t g_t and g_{t−1} = g_t + s_t W[i_t].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from latentbench.sae.autoencoder import Codes, TrainingLoss
from latentbench.sae.dictionary import DictionarySAE
from latentbench.sae.encoders import unit_rows
from latentbench.sae.memory import gradients
from latentbench.sae.options.pursuit import MatchingPursuitOptions
from latentbench.sae.sparse_kernels.autograd import check_active, top_linear


def pursued(centred: Tensor, weight: Tensor, steps: int) -> tuple[Codes, Tensor]:
    """Codes [N, steps], one entry per step, and what is left [N, d_in] of hidden states minus the bias [N, d_in].

    weight [width, d_in]. A latent may stand in several entries; see `merged`. Without gradients.
    """
    left, none = centred.detach().clone(), weight.new_zeros(len(weight))
    codes = Codes.empty(len(centred), steps, like=left)
    rows = weight.detach()
    for step in range(steps):
        found = top_linear(left, rows, none, 1).indices.squeeze(1)
        atoms = rows[found]
        # Anew and in full precision: the choice may have been made in sixteen bits.
        amounts = (left * atoms).sum(1).relu()
        left.addcmul_(amounts[:, None], atoms, value=-1)
        codes.values[:, step], codes.indices[:, step] = amounts, found
    return codes, left


class _Pursuit(Function):
    @staticmethod
    def forward(ctx: Any, centred: Tensor, weight: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        codes, left = pursued(centred, weight, steps)
        ctx.save_for_backward(codes.values, codes.indices, left, weight)
        ctx.mark_non_differentiable(codes.values, codes.indices)
        return left, codes.values, codes.indices

    @staticmethod
    def backward(ctx: Any, dleft: Tensor, _: Tensor, __: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, left, weight = ctx.saved_tensors
        dweight = gradients.take(len(weight), weight.shape[1], like=weight).zero_()
        g, before = dleft.clone(), left.clone()
        for step in range(values.shape[1] - 1, -1, -1):
            atoms, amounts = weight[indices[:, step]], values[:, step, None]
            before.addcmul_(amounts, atoms)
            slopes = -(g * atoms).sum(1, keepdim=True) * (amounts > 0)
            dweight.index_add_(0, indices[:, step], slopes * before - amounts * g)
            g.addcmul_(slopes, atoms)
        return g, dweight, None


def pursuit(centred: Tensor, weight: Tensor, steps: int) -> tuple[Codes, Tensor]:
    """`pursued` with gradients: those of what is left [N, d_in] reach `centred` [N, d_in] and `weight` [width, d_in]."""
    left, values, indices = _Pursuit.apply(centred, weight, steps)  # type: ignore[no-untyped-call]
    return Codes(values, indices), left


def merged(codes: Codes) -> Codes:
    """The same codes with every latent in one entry: its first one has the sum, the others become padding."""
    latents, order = codes.indices.sort(dim=1, stable=True)
    # In the order of latents, entries of the same one are neighbours, the earliest of them first.
    begins = torch.ones_like(latents, dtype=torch.bool)
    begins[:, 1:] = latents[:, 1:] != latents[:, :-1]
    places = torch.arange(latents.shape[1], device=latents.device) * begins
    firsts = order.gather(1, places.cummax(1).values)
    slots = torch.empty_like(order).scatter_(1, order, firsts)
    return Codes(torch.zeros_like(codes.values).scatter_add_(1, slots, codes.values), codes.indices)


class MatchingPursuit(DictionarySAE):
    """Parameters `W_dec` [width, d_in], rows of unit norm, and `b_dec` [d_in]; there is no encoder beside them."""

    uses_kernels = True

    def __init__(self, options: MatchingPursuitOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__(unit_rows(torch.randn(options.width, d_in, generator=generator)))
        self.k = options.k

    @property
    def trained_k(self) -> int:
        return self.k

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        steps = self.k if budget is None else budget
        check_active(steps, self.W_dec)
        return merged(pursued(x - self.b_dec, self.W_dec, steps)[0])

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        codes, left = pursuit(x - self.b_dec, self.W_dec, self.k)
        loss = left.pow(2).sum() / len(x)
        return TrainingLoss(loss, loss.detach(), loss.new_zeros(()), merged(codes).firing_counts(self.width))

    @torch.no_grad()
    def after_step(self) -> None:
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        # Every step is linear in what is left, so activations shrink with x; rows stay.
        self.b_dec.div_(scale)
