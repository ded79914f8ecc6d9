"""Tiny models and their tokenizers as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from latentbench.core.spec_model import Json

BLOCKS, WIDTH, CONTEXT = 4, 64, 64
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Kind:
    """A kind of model: what transformers and llama.cpp call it, and in what their layouts differ."""

    transformers: str
    llama_cpp: str
    byte_level: bool = True
    """Whether its vocabulary is one of bytes and merges, or sentencepiece's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    written: Callable[[str, torch.Tensor, Any], torch.Tensor] = lambda name, tensor, config: tensor
    """What the converter makes of a tensor."""
    values: Callable[[gguf.GGUFWriter, Any], None] = lambda writer, config: None
    """What it says of the model besides."""


def _turned(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Llama's rotary halves are interleaved in llama.cpp."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = next((part for part in heads if f".{part}." in name), None)
    if part is None:
        return tensor
    rows = tensor.shape[0] // heads[part] // 2
    return tensor.reshape(heads[part], 2, rows, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _raised(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Gemma's norms are written with the one that its layers add."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _windows(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _caps(writer: gguf.GGUFWriter, config: Any) -> None:
    _windows(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 256, "sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh"}
KINDS = {
    "llama": Kind(
        "llama",
        "llama",
        written=_turned,
        values=lambda w, c: w.add_rope_dimension_count(c.head_dim),
        options={"head_dim": 16},
    ),
    "qwen2": Kind("qwen2", "qwen2", options={"tie_word_embeddings": True}),
    # 128 is the one size of head that models of this kind have; transformers does not read another.
    "qwen3": Kind("qwen3", "qwen3", options={"head_dim": 128}),
    "gemma2": Kind(
        "gemma2",
        "gemma2",
        False,
        {**_GEMMA, "attn_logit_softcapping": 7.0, "final_logit_softcapping": 3.0},
        _raised,
        _caps,
    ),
    "gemma3": Kind("gemma3_text", "gemma3", False, {**_GEMMA, "tie_word_embeddings": True}, _raised, _windows),
    "phi3": Kind(
        "phi3",
        "phi3",
        False,
        {"sliding_window": 8, "pad_token_id": 0},
        values=lambda w, c: w.add_sliding_window(c.sliding_window),
    ),
}


@cache
def tiny(name: str) -> Any:
    """A random model whose numbers GGUF's 8-bit blocks hold exactly, with norms of few binary digits."""
    kind = KINDS[name]
    sizes = {
        "vocab_size": len(_tokens(kind)),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": BLOCKS,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    config = CONFIG_MAPPING[kind.transformers](
        **{"bos_token_id": 1, "eos_token_id": 2, **sizes, **heads, **kind.options}
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(_in_blocks(3 * parameter))
            else:
                parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).mul(256).round().div(256))
    return model


def _in_blocks(tensor: torch.Tensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind))


def write_gguf(path: Path, name: str, change: Callable[[gguf.GGUFWriter], object] = lambda writer: None) -> Path:
    """Writes `tiny(name)`, its matrices in blocks of 8 bits. `change` may say more before the file is closed."""
    kind, model = KINDS[name], tiny(name)
    writer = gguf.GGUFWriter(path, kind.llama_cpp)
    _describe(writer, kind, model.config)
    _vocabulary(writer, kind)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind.llama_cpp.upper()), BLOCKS)
    tied = model.config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        written = kind.written(key, tensor, model.config).contiguous().numpy()
        place = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if written.ndim == 2:
            blocks = gguf.quantize(written, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(place, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(place, written)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, kind: Kind, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope: Json = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    kind.values(writer, config)


def _tokens(kind: Kind) -> list[str]:
    special = ["<unk>", "<s>", "</s>"]
    if kind.byte_level:
        return [*special, *bytes_to_unicode().values(), "th", "the", "Ġthe"]
    letters = "▁abcdefghijklmnopqrstuvwxyz.,0123456789"
    return [*special, *(f"<0x{number:02X}>" for number in range(256)), *letters, "th", "the", "▁the"]


def _vocabulary(writer: gguf.GGUFWriter, kind: Kind) -> None:
    tokens = _tokens(kind)
    writer.add_tokenizer_model("gpt2" if kind.byte_level else "llama")
    writer.add_tokenizer_pre("qwen2" if kind.byte_level else "default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1 if kind.byte_level or not t.startswith("<0x") else 6 for t in tokens[3:]])
    if kind.byte_level:
        writer.add_token_merges(["t h", "th e", "Ġ the"])
    else:
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def logits(model: Any, rows: int = 3, length: int = 40) -> np.ndarray:
    """[rows, length, vocabulary] of fixed random ids."""
    ids = torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return np.asarray(model(ids).logits.float())
