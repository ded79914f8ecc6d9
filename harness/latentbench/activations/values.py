"""The hidden state among what blocks and their submodules are called with and return."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from latentbench.errors import InvalidInput


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
