"""Finding the parts of a decoder by structure, and the hidden state among what they are called with and return.

Any causal language model of `transformers` works. The blocks are the one `ModuleList` as long as the configuration's number
of layers. What a block's attention or MLP *adds* to the residual stream is read at the output of that submodule, or of the
norm that follows it before the addition (Gemma-2, Gemma-3, OLMo-2, GLM-4, HyperCLOVA X); whether it is that is measured
(`harness/latentbench/activations/residual.py`).
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import PAIR, Site


def first_tensor(output: Any) -> Tensor:
    """The tensor that a block or submodule returns: the output itself or the first of a tuple or list."""
    tensor = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a hidden state, got {type(tensor).__name__}")
    return tensor


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with `tensor` for its first tensor."""
    if isinstance(output, list):  # OpenAI GPT goes on to add lists to it
        return [tensor, *output[1:]]
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def hidden_state(output: Any) -> Tensor:
    """The hidden state [B, T, d] in what a block or submodule returns. Raises InvalidInput when it is none."""
    tensor = first_tensor(output)
    if tensor.ndim != 3:
        raise InvalidInput(
            f"this model's hidden states have the form {list(tensor.shape)} here instead of [batch, tokens, width]: it "
            "keeps several residual streams or joins texts, so they cannot be read or changed as one stream"
        )
    return tensor


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state [B, T, d] among the arguments a block is called with. Raises InvalidInput when it is none."""
    return hidden_state(args[0] if args else kwargs["hidden_states"])


def with_block_input(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> tuple[Any, dict[str, Any]]:
    """The arguments with `hidden` for the hidden state."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


_OTHER_TOWERS = re.compile(r"vision|visual|image|audio|speech|encoder", re.IGNORECASE)

_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
# `fc2` is the second of the two matrices that OPT, XGLM and BioGPT keep in the block itself.
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mlp_block", "fc2")

# Norms applied to a submodule's output before it is added. `post_attention_layernorm` is one of them only beside
# `post_feedforward_layernorm`: in Llama the same name is the norm *before* the MLP.
_NORMS_AFTER_ATTENTION = ("post_self_attn_layernorm", "post_norm1")
_NORMS_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2")


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, first to last.

    Raises InvalidInput when there is no `ModuleList` of the configured length.
    """
    layers = _number_of_layers(model)
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    # Blocks have parts of their own; a list of as many leaves holds norms or embeddings, one for each block.
    fitting = [(name, part) for name, part in lists if len(part) == layers and len(list(part.modules())) > layers + 1]
    if not fitting:
        raise InvalidInput(
            f"{type(model).__name__}: no decoder blocks found: looked for a ModuleList of {layers} blocks "
            f"(num_hidden_layers), found {', '.join(f'{name} of {len(part)}' for name, part in lists) or 'none at all'}"
        )
    # The outermost list of the text decoder: a list of experts inside a block can have the same length by chance.
    return min(fitting, key=lambda item: (bool(_OTHER_TOWERS.search(item[0])), item[0].count(".")))[1]


def input_device(model: nn.Module) -> torch.device:
    """Where a model wants its token ids, and where it gives its logits.

    Of one that is spread over devices accelerate's hook says so: weights that are on the disk until they are used have no
    device.
    """
    stated = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return next(model.parameters()).device if stated is None else torch.device(stated)


def is_spread(model: nn.Module) -> bool:
    """Whether parts of a model may compute on other devices than the one it is given token ids on."""
    return getattr(model, "_hf_hook", None) is not None


def attention_output(block: nn.Module) -> nn.Module:
    """The submodule of `block` whose output is what its attention adds. Raises InvalidInput when there is none."""
    sandwich = _child(block, _NORMS_AFTER_MLP) is not None
    after = _NORMS_AFTER_ATTENTION + (("post_attention_layernorm",) if sandwich else ())
    return _child(block, after) or _required(block, "attention", _ATTENTION_NAMES, ("Attention",))


def mlp_output(block: nn.Module) -> nn.Module:
    """The submodule of `block` whose output is what its MLP adds. Raises InvalidInput when there is none."""
    return _child(block, _NORMS_AFTER_MLP) or _required(block, "MLP", _MLP_NAMES, ("MLP", "MoE", "FeedForward"))


def mlp_input(block: nn.Module) -> nn.Module:
    """The submodule of `block` that is given what its MLP reads. Raises InvalidInput when there is none."""
    # Blocks that keep the two matrices themselves have a first one too, but no name that says which it is.
    whole = tuple(name for name in _MLP_NAMES if name != "fc2")
    return _required(block, "MLP", whole, ("MLP", "MoE", "FeedForward"))


def check_site(model: nn.Module, site: Site) -> nn.Module:
    """The block of a site. Raises InvalidInput when `model` has no such block or the block no such submodule."""
    blocks = decoder_blocks(model)
    if site.index >= len(blocks):
        raise InvalidInput(
            f"layer {site.index} does not exist: {type(model).__name__} has {len(blocks)} decoder blocks, "
            f"numbered 0 to {len(blocks) - 1}"
        )
    block = blocks[site.index]
    submodule(block, site)
    return block


def submodule(block: nn.Module, site: Site) -> nn.Module:
    """The module at whose output `site` is read: the block itself for the residual stream."""
    if site.point in ("mlp_out", PAIR):
        return mlp_output(block)
    return attention_output(block) if site.point == "attn_out" else block


def text_config(model: nn.Module) -> Any:
    """The configuration that states the sizes of a model's decoder; None where the model has none at all."""
    config = getattr(model, "config", None)
    # A model that also sees or hears has a configuration for each tower, and the sizes of its decoder in the text's.
    return config.get_text_config(decoder=True) if isinstance(config, PretrainedConfig) else config


def _number_of_layers(model: nn.Module) -> int:
    layers = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise InvalidInput(
            f"{type(model).__name__}: no decoder blocks found: its configuration has no num_hidden_layers"
        )
    return layers


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(block.named_children())
    return next((children[name] for name in names if name in children), None)


def _required(block: nn.Module, what: str, names: tuple[str, ...], classes: tuple[str, ...]) -> nn.Module:
    by_class = (child for child in block.children() if type(child).__name__.endswith(classes))
    found = _child(block, names) or next(by_class, None)
    if found is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise InvalidInput(
            f"{type(block).__name__}: no {what} submodule found: looked for a child named {', '.join(names)} or a "
            f"class ending in {', '.join(classes)}; found {children}. The residual stream works."
        )
    # BLOOM's attention and MLP are given the stream and return the sum: what they add is nowhere to be read.
    if "residual" in inspect.signature(found.forward).parameters:
        raise InvalidInput(
            f"{type(found).__name__} adds the residual stream itself, so what the {what} adds cannot be read at its "
            f"output. The residual stream works."
        )
    return found
