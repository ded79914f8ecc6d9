"""Which tokens a direction in the residual stream promotes and suppresses: the logit lens.

For a decoder row d the lens is W_U (norm(d) − norm(0)): the direction alone goes through the model's final norm, with
its learned scale (and centring, for a LayerNorm), and its unembedding; the norm's bias is taken out. From each latent's
logits their mean over the vocabulary is subtracted, which changes no probability. It is what the direction would do by
itself at the end of the model: later blocks are left out, and how strongly the norm divides a real hidden state is not
known, so only the order and the ratios of one latent's numbers mean something.

The lens of steering vectors (harness/latentbench/mechanism/output_tokens.py) leaves the norm out, as the work it reproduces
does. The two differ on purpose, and their tokens are not comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.vocabulary import unembedding

_LOGITS = 1 << 25
"""Logits that exist at once."""


@dataclass(frozen=True)
class Lens:
    """The k most promoted and most suppressed tokens of n directions."""

    top: Tensor
    """[n, k] int64 token ids, most promoted first."""
    top_logits: Tensor
    """[n, k]"""
    bottom: Tensor
    """[n, k] int64 token ids, most suppressed first."""
    bottom_logits: Tensor
    """[n, k]"""


@torch.no_grad()
def logit_lens(model: nn.Module, directions: Tensor, k: int) -> Lens:
    """Of `directions` [n, d] under a causal language model. Raises InvalidInput for a model without unembedding."""
    rows, norm = unembedding(model), final_norm(model)
    k = min(k, len(rows))
    step = max(1, _LOGITS // len(rows))
    directions = directions.to(rows)
    bias = norm(torch.zeros_like(directions[:1]))
    parts = []
    for part in torch.split(directions, step):
        logits = ((norm(part) - bias) @ rows.t()).float()
        logits -= logits.mean(1, keepdim=True)
        parts.append((*logits.topk(k), *(-logits).topk(k)))
    high, top, low, bottom = (torch.cat(found).cpu() for found in zip(*parts, strict=True))
    return Lens(top, high, bottom, -low)


def final_norm(model: nn.Module) -> nn.Module:
    """The norm in front of the unembedding: the last one beside the decoder blocks; nothing where there is none."""
    blocks = decoder_blocks(model)
    for parent in model.modules():
        children = list(parent.children())
        if any(child is blocks for child in children):
            norms = [child for child in children if "norm" in type(child).__name__.lower()]
            return norms[-1] if norms else nn.Identity()
    return nn.Identity()
