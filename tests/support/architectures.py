"""Tiny random models of many architectures, and what is known of what their blocks add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from latentbench_adapters.model_loading import auto_class

LAYERS, WIDTH, WORDS = 4, 32, 121

_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), WORDS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "bos_token_id"), 1),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads", "eos_token_id"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("head_dim", "rotary_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "pad_token_id": 0,
}
_VISION: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "intermediate_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 4),
    "image_size": 28,
    "patch_size": 14,
}
"""The other tower of a model that also sees; it is built and never run."""
_SIGHTED_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_EVERY_SECOND = {"layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2)}


def _sizes(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything small that a configuration knows, and options of its own."""
    kind = CONFIG_MAPPING[name]
    known = {*signature(kind.__init__).parameters, *getattr(kind, "attribute_map", {}), *kind.__dataclass_fields__}
    wanted = {**{key: value for key, value in _SIZES.items() if key in known}, **options}
    return {key: value for key, value in wanted.items() if value is not None}


@dataclass(frozen=True)
class Architecture:
    """What is expected of its blocks."""

    options: Mapping[str, Any] = field(default_factory=dict)
    attention: float | str = 1.0
    """What attention is multiplied by, or a part of the sentence that refuses `attn_out`."""
    mlp: float | str = 1.0
    different: Mapping[int, tuple[float | str, float | str]] = field(default_factory=dict)
    """Blocks that are unlike the others: (attention, MLP)."""
    residual: str = ""
    """A part of the sentence that refuses the residual stream too."""
    tower: str = ""
    """Of a model that also sees or hears: the type of its text decoder, to which `options` then belong."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Options of that model itself."""
    handover: bool = False
    """Whether blocks hand on more than their hidden state, so that no pass can be resumed."""

    def of(self, index: int) -> tuple[float | str, float | str]:
        """(attention, MLP) of one block."""
        return self.different.get(index, (self.attention, self.mlp))


def _scaled(number: float, **options: Any) -> Architecture:
    return Architecture({"residual_multiplier": number, **options}, number, number)


def _refused(sentence: str, **options: Any) -> Architecture:
    return Architecture(options, sentence, sentence)


_SUM, _NUMBER, _ITSELF = "do not add up to its output", "no number it holds explains", "adds the residual stream itself"
_JOINED = "puts out the tokens of all texts in one row"
_NO_ATTENTION, _NO_MLP = "no attention submodule found", "no MLP submodule found"
_WITHOUT_TEXT = "does not run on text alone"


def _hybrid(*without_attention: int, **options: Any) -> Architecture:
    """Some blocks have another mixer instead of attention."""
    return Architecture(options, different=dict.fromkeys(without_attention, (_NO_ATTENTION, 1.0)))


def _sighted(
    tower: str, options: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None
) -> Architecture:
    """A decoder in a model that also sees."""
    return Architecture(options or {}, tower=tower, beside={"vision_config": {**_VISION, **(vision or {})}})


def _hearing(encoder: str) -> dict[str, Any]:
    return {"audio_config": {**_sizes(encoder, {}), "model_type": encoder}}


_EVEN = dict.fromkeys((0, 2), (_NO_ATTENTION, 1.0))
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}
_DELTA_NET = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    **_EVERY_SECOND,
}
_SEVERAL_STREAMS = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "activation_sparsity_pattern": [0.0] * LAYERS,
    "intermediate_size": [48] * LAYERS,
}
_LAYER_INPUTS = {
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 8,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}

FAST: Mapping[str, Architecture] = {
    "llama": Architecture(),
    "gpt2": Architecture(),
    "gpt_neox": Architecture(),
    "gemma2": Architecture(),
    "olmo2": Architecture(),
    "falcon": Architecture(),
    "opt": Architecture(mlp=_JOINED),
    "mixtral": Architecture(),
    "granite": _scaled(0.22),
    "minicpm3": Architecture({**_LATENT, "head_dim": None}, 0.7, 0.7),
    "hyperclovax": _scaled(0.3),
    "bloom": _refused(_ITSELF),
    "bert": Architecture({"is_decoder": True}, _NUMBER, _NO_MLP),
    "gemma3n_text": Architecture(
        _SEVERAL_STREAMS,
        residual=r"the form \[4, \d, \d, 32\] .* keeps several residual streams",
    ),
}
SLOW: Mapping[str, Architecture] = {
    **{
        name: Architecture()
        for name in (
            *("afmoe", "apertus", "arcee", "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "codegen", "cohere"),
            *(
                "cohere2",
                "ctrl",
                "diffllama",
                "ernie4_5",
                "exaone4",
                "flex_olmo",
                "gemma",
                "gemma3_text",
                "glm",
                "glm4",
            ),
            *("glm4_moe", "gpt_bigcode", "gpt_oss", "gptj", "helium", "hunyuan_v1_dense", "jetmoe", "laguna"),
            *("mbart", "ministral", "mistral", "modernbert-decoder", "moshi", "nanochat", "nemotron", "olmo", "olmo3"),
            *("olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss"),
            *("smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm"),
        )
    },
    **{name: Architecture({**_LATENT, "head_dim": None}) for name in ("deepseek_v2", "deepseek_v3", "youtu")},
    "llama4_text": Architecture(mlp=_JOINED),
    "gpt_neo": Architecture({"attention_types": [[["global", "local"], LAYERS // 2]]}),
    **{name: _scaled(0.22) for name in ("granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared")},
    "jamba": _hybrid(0, 2, attn_layer_period=2, attn_layer_offset=1),
    "lfm2": _hybrid(0, 2, **_CONVOLUTIONS),
    "lfm2_moe": _hybrid(0, 2, **_CONVOLUTIONS),
    "qwen3_next": _hybrid(0, 2, **_DELTA_NET),
    "qwen3_5_text": _hybrid(0, 2, **_DELTA_NET),
    "bamba": _hybrid(0, 2, attn_layer_indices=[1, 3], **_MAMBA),
    "granitemoehybrid": Architecture(
        {
            "residual_multiplier": 0.3,
            "num_local_experts": 0,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * (LAYERS // 2),
        },
        different={0: (_NO_ATTENTION, 0.3), 1: (0.3, 0.3), 2: (_NO_ATTENTION, 0.3), 3: (0.3, 0.3)},
    ),
    "rwkv": Architecture(different={0: (_SUM, _SUM)}),
    "gpt_neox_japanese": Architecture(different={LAYERS - 1: (_SUM, _SUM)}),
    "falcon_h1": _refused(_SUM, **_MAMBA, mamba_d_ssm=64),
    "gemma4_text": Architecture(
        _LAYER_INPUTS,
        attention=_NUMBER,
        mlp=_NUMBER,
        handover=True,
    ),
    "bart": _refused(_NUMBER),
    "beam": _refused(_NUMBER),
    "cpmant": Architecture(residual=rf"gives its blocks 40 tokens for a text of 8|{_NO_ATTENTION}"),
    "doge": _refused(_NUMBER),
    "minimax": _refused(_NUMBER),
    "mpt": Architecture(attention=_NUMBER, mlp=_ITSELF),
    "openai-gpt": _refused(_NUMBER),
    "roberta-prelayernorm": Architecture(attention=_SUM, mlp=_NO_MLP),
    "zaya": Architecture({"num_experts_per_tok": 1}, _NUMBER, _NUMBER, handover=True),
    "mamba": Architecture(attention=_NO_ATTENTION, mlp=_NO_MLP),
    "mamba2": Architecture({"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1}, _NO_ATTENTION, _NO_MLP),
    "falcon_mamba": Architecture(attention=_NO_ATTENTION, mlp=_NO_MLP),
    "nemotron_h": Architecture(
        {"layer_types": ["mamba", "mlp", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1},
        different={0: (_NO_ATTENTION, _NO_MLP), 1: (_NO_ATTENTION, 1.0), 2: (1.0, _NO_MLP), 3: (_NO_ATTENTION, 1.0)},
    ),
    "recurrent_gemma": _hybrid(0, 1, 3),
    **{
        name: Architecture(residual=r"the form \[\d, \d, 4, 32\] .* keeps several residual streams")
        for name in ("deepseek_v4", "hy_v4")
    },
}
SIGHTED: Mapping[str, Architecture] = {
    "gemma3": _sighted("gemma3_text"),
    "llava": _sighted("llama", vision={"model_type": "clip_vision_model"}),
    "llava_next": _sighted("mistral", vision={"model_type": "clip_vision_model"}),
    "mistral3": _sighted("mistral", vision={"model_type": "pixtral"}),
    "qwen2_vl": _sighted("qwen2_vl_text", _SIGHTED_ROPE),
    "qwen2_5_vl": _sighted("qwen2_5_vl_text", _SIGHTED_ROPE),
    "qwen3_vl": _sighted("qwen3_vl_text", _SIGHTED_ROPE, {"deepstack_visual_indexes": [0]}),
    "qwen3_vl_moe": _sighted("qwen3_vl_moe_text", _SIGHTED_ROPE, {"deepstack_visual_indexes": [0]}),
    "paligemma": _sighted("gemma", vision={"model_type": "siglip_vision_model"}),
    "idefics3": _sighted("llama"),
    "smolvlm": _sighted("llama"),
    "internvl": _sighted("qwen2", vision={"image_size": [28, 28], "patch_size": [14, 14]}),
    "glm4v": _sighted("glm4v_text", _SIGHTED_ROPE),
    "aya_vision": _sighted("cohere2", vision={"model_type": "siglip_vision_model"}),
    "llama4": replace(_sighted("llama4_text"), mlp=_JOINED),
    "mllama": replace(
        _sighted("mllama_text_model", {"cross_attention_layers": [3]}), different={3: (_WITHOUT_TEXT, _WITHOUT_TEXT)}
    ),
    "qwen3_5": replace(_sighted("qwen3_5_text", _DELTA_NET), different=_EVEN),
    "lfm2_vl": replace(_sighted("lfm2", _CONVOLUTIONS), different=_EVEN),
    "gemma4": Architecture(_LAYER_INPUTS, _NUMBER, _NUMBER, tower="gemma4_text", handover=True),
    "qwen2_audio": Architecture(tower="qwen2", beside=_hearing("qwen2_audio_encoder")),
    "voxtral": Architecture(tower="llama", beside=_hearing("voxtral_encoder")),
}
"""Decoders of text in models that also see or hear."""
ARCHITECTURES: Mapping[str, Architecture] = {**FAST, **SLOW, **SIGHTED}


@cache
def model_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with weights away from the tiny initialisation, so that every part matters."""
    config = config_of(name)
    model: nn.Module = auto_class(config, name).from_config(config, dtype=dtype).eval()
    drawn = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=drawn)
    return model


def config_of(name: str) -> Any:
    """The configuration of a tiny model."""
    architecture = ARCHITECTURES[name]
    if not architecture.tower:
        return CONFIG_MAPPING[name](**_sizes(name, architecture.options))
    text = {**_sizes(architecture.tower, architecture.options), "model_type": architecture.tower}
    return CONFIG_MAPPING[name](text_config=text, **architecture.beside)
