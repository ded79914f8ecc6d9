"""How attention patterns and MLP outputs move under steering, over the same text.

Per head and query token t the total variation ½ Σ_s |a_steered(t, s) − a_plain(t, s)|; per block ‖Δmlp(t)‖ / ‖mlp(t)‖.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.site import Site
from latentbench.steering.intervention import Intervention
from latentbench.steering.mechanism.passages import Passages, Trace, eager_attention, trace
from latentbench_adapters.protocols import LanguageModel


@dataclass(frozen=True)
class Movement:
    """Per passage, summed over the tokens that generated tokens are predicted from."""

    heads: Tensor
    """[B, layers, heads] float64 total variation."""
    mlps: Tensor
    """[B, layers] float64 relative change of MLP outputs."""
    tokens: Tensor
    """[B] those tokens."""


@torch.no_grad()
def movement(lm: LanguageModel, intervention: Intervention, passages: Passages) -> Movement:
    """Steered against plain, all layers and heads."""
    sites = [Site(index=layer, point="mlp_out") for layer in range(len(decoder_blocks(lm.model)))]
    heads, mlps = [], []
    with eager_attention(lm):
        for batch in passages.batches(lm, _kept(lm, passages)):
            steered = trace(lm, batch, intervention, sites, attentions=True)
            plain = trace(lm, batch, None, sites, attentions=True)
            heads.append(_heads(steered, plain, batch.predicting))
            mlps.append(_mlps(steered, plain, sites, batch.predicting))
    return Movement(torch.cat(heads), torch.cat(mlps), passages.predicting.sum(1).double().cpu())


def _kept(lm: LanguageModel, passages: Passages) -> int:
    """Numbers per token: attention to every other token by every head of every layer."""
    config = lm.model.config
    return int(config.num_hidden_layers * config.num_attention_heads) * passages.ids.shape[1]


def _heads(steered: Trace, plain: Trace, chosen: Tensor) -> Tensor:
    """[B, layers, heads]."""
    layers = []
    for after, before in zip(steered.attentions, plain.attentions, strict=True):
        moved = (after.float() - before.float()).abs().sum(-1) / 2  # [B, heads, T]
        layers.append((moved.double() * chosen[:, None]).sum(-1))
    return torch.stack(layers, 1).cpu()


def _mlps(steered: Trace, plain: Trace, sites: list[Site], chosen: Tensor) -> Tensor:
    """[B, layers]."""
    layers = []
    for site in sites:
        before = plain.states[site].float()
        moved = (steered.states[site].float() - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-30)
        layers.append((moved.double() * chosen).sum(1))
    return torch.stack(layers, 1).cpu()
