"""Tiny random models that keep other things of a text than keys and values, and what is known of how they can write."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from latentbench.core.protocols import LanguageModel
from tests.support.labs import VOCABULARY, words_tokenizer

LAYERS, WIDTH = 4, 32
_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "vocab_size": VOCABULARY,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}
PADDED: Mapping[str, Mapping[str, Any]] = {
    "qwen3_5_text": _LINEAR,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": _CONVOLUTIONS,
    "mamba": {},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "qwen3_next": _LINEAR,
    "lfm2_moe": _CONVOLUTIONS,
    "bamba": {**_MAMBA, "mamba_n_groups": 1, "mamba_d_state": 8, "attn_layer_indices": [1, 3]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "falcon_mamba": {},
    "olmo_hybrid": {"layer_types": _LINEAR["layer_types"]},
    "granitemoehybrid": {**_MAMBA, "num_local_experts": 0, "layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "hybrid_override_pattern": "M*M-",
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Families that `generate()` writes with, also behind padding, and our own steps do not."""
EQUAL: Mapping[str, Mapping[str, Any]] = {"recurrent_gemma": {}, "blenderbot": {}, "bart": {}}
"""Those that read padding in front of a prompt as if it were text."""
REFUSED: Mapping[str, Mapping[str, Any]] = {"rwkv": {}, "roberta-prelayernorm": {}}
"""RWKV mixes up the rows of a batch, and a RoBERTa reads from both sides."""
KEYS_AND_VALUES = ("llama", "gpt2", "gemma2", "mixtral", "minimax")
_FIRST = {"qwen3_5_text", "mamba", "jamba"}
QUICK = tuple(name for name in PADDED if name in _FIRST)
OTHERS = tuple(name for name in PADDED if name not in _FIRST)


def hybrid(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model with weights away from the tiny initialisation, so that every part matters."""
    model: Any = AutoModelForCausalLM.from_config(_config(name), dtype=dtype).eval().requires_grad_(False)
    drawn = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=drawn)
    return LanguageModel(model, words_tokenizer(), torch.device("cpu"))


def _config(name: str) -> Any:
    kind = CONFIG_MAPPING[name]
    known = {*signature(kind.__init__).parameters, *getattr(kind, "attribute_map", {}), *kind.__dataclass_fields__}
    stated = {**PADDED, **EQUAL, **REFUSED}.get(name, {})
    return kind(**{key: value for key, value in _SIZES.items() if key in known} | dict(stated))
