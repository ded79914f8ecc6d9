"""Whether a model predicts a token from those before it alone, found out on the loaded model.

Everything here takes that for granted: cross-entropies, likelihoods, generation with a cache, one pass over a steered text.
What `transformers` lists as causal is not always: an encoder's checkpoint keeps attending both ways unless its configuration
says `is_decoder` (BERT, RoBERTa), and PaliGemma reads a whole text as a prefix that sees itself in both directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import input_device
from latentbench.activations.measured_once import without_hooks
from latentbench.activations.vocabulary import embedding_rows
from latentbench.core.errors import InvalidInput

_TOKENS = 8
_ROUNDINGS = 16
"""How far logits may be off, in units of the data type's precision; see `latentbench.activations.resume`."""


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Raises InvalidInput when the second half of a short text changes what is predicted in the first."""
    # Spread over the vocabulary, because a first id may be padding that nothing attends to; turned round in the second half.
    places = torch.arange(_TOKENS, device=input_device(model))[None]
    text = places * embedding_rows(model) // _TOKENS
    other = torch.where(places < _TOKENS // 2, text, text.flip(1) // 2)
    with without_hooks(model):
        one, two = (_first_half(model, ids) for ids in (text, other))
    tolerance = _ROUNDINGS * torch.finfo(one.dtype).eps
    size = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not torch.allclose(one, two, rtol=tolerance, atol=tolerance * size, equal_nan=True):
        raise InvalidInput(
            f"{type(model).__name__} is no causal language model here: what it predicts after a token depends on the tokens "
            "that follow, so neither cross-entropies nor generated texts would be what they are called (an encoder needs "
            "`is_decoder` in its config.json; a prefix model cannot be measured)"
        )


def _first_half(model: nn.Module, ids: Tensor) -> Tensor:
    """[tokens / 2, vocabulary] logits."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, : _TOKENS // 2]
