"""A small model with massive activations planted in it: one word has a hidden state a hundred times as long as the others.

The word's embedding is long, and norms in front of attention and MLP keep it from reaching anything else, so it stays in the
residual stream of every block, as the massive activations of real models do.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from latentbench.core.protocols import LanguageModel

BOS, MASSIVE, VOCABULARY, WIDTH = 0, 7, 50, 16
_NONE = dict.fromkeys(("eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"))


def tokenizer(eos: int | None = None) -> SimpleNamespace:
    """Token t is called `wt`; `eos` is special besides BOS."""
    names = {f"w{token}": token for token in range(VOCABULARY)}
    return SimpleNamespace(bos_token_id=BOS, **(_NONE | {"eos_token_id": eos}), get_vocab=lambda: names)


def massive_model(dtype: torch.dtype = torch.float32, eos: int | None = None) -> LanguageModel:
    """Three blocks; the state of token `MASSIVE` is long behind each of them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    plant(model, MASSIVE)
    return LanguageModel(model.to(dtype), tokenizer(eos), torch.device("cpu"))  # type: ignore[arg-type]


def plant(model: PreTrainedModel, token: int, length: float = 200) -> None:
    """Gives a token an embedding of that length."""
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows[token] *= length / rows[token].norm()
