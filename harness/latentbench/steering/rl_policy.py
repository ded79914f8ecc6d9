"""The log-probabilities that a policy's gradient is taken of: those of the model's own logits.

TRL computes them from the last hidden state and the output embedding, without the logits of prompts, and repeats what some
architectures do between the two (Gemma's soft-capping, Granite's scale). What it does not know is left out without a word:
RecurrentGemma's soft-capping, the head of ModernBERT and BERT; Aya Vision is scaled although it is not; Llama 4's output it
cannot read. So it is compared with the model once, before anything is trained, and replaced by the logits where it differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentbench.activations.blocks import input_device
from latentbench.activations.measured_once import without_hooks
from latentbench.activations.vocabulary import embedding_rows

_ROUNDINGS = 4
"""How far log-probabilities may be off, in units of the precision of the largest of them."""


def use_own_logits(model: Any, temperature: float, original: Callable[..., Any]) -> bool:
    """Makes a model that TRL's trainer has prepared answer with its own log-probabilities, where TRL's are others.

    `original` is the model's forward before that. Returns whether it was necessary.
    """
    if _agree(model, temperature):
        return False
    prepared = model.forward

    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return prepared(*args, **kwargs)
        labels = kwargs.pop("labels")
        return _scored(original(*args, **kwargs, use_cache=False).logits, labels, temperature)

    model.forward = forward
    return True


@torch.no_grad()
def _agree(model: Any, temperature: float) -> bool:
    """Whether TRL's log-probabilities of a few tokens are those of the model's logits."""
    # Spread over the vocabulary: a model's scale shows in how unlike its logits are.
    ids = torch.arange(8, device=input_device(model))[None] * embedding_rows(model) // 8
    with without_hooks(model):
        own = _scored(model(input_ids=ids, use_cache=False).logits, ids, temperature).log_probs
        try:
            theirs = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError):
            return False  # it looks for parts by name
    off = (own.double() - theirs.double()).square().mean().sqrt()
    return bool(off <= _ROUNDINGS * torch.finfo(next(model.parameters()).dtype).eps * own.abs().max().clamp_min(1.0))


def _scored(logits: Tensor, labels: Tensor, temperature: float) -> Any:
    """TRL's form of an answer, [B, T − 1] each, 0 where a label is −100."""
    from trl.trainer.utils import FusedCausalLMOutput

    wanted = labels[:, 1:]
    mask = wanted != -100
    every = torch.log_softmax(logits[:, :-1].float() / temperature, -1)
    chosen = every.gather(-1, wanted.clamp_min(0)[..., None])[..., 0].masked_fill(~mask, 0)
    with torch.no_grad():  # reported by TRL, in no loss of ours
        entropy = -(every.exp() * every).sum(-1).masked_fill(~mask, 0)
    return FusedCausalLMOutput(log_probs=chosen, entropy=entropy, label_mask=mask)
