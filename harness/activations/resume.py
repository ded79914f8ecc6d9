"""The resumed forward: what the model says when one hidden state is replaced, without running the blocks before it.

The model's own forward is run, so masks, positions, rotary embeddings, final norm and soft-capping are exactly its
own; only the blocks up to the site are replaced by pass-throughs. Given the hidden state that was captured, the logits
are bit-identical to those of the full forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.activations.blocks import check_site, decoder_blocks, submodule
from harness.activations.capture import block_input
from harness.activations.site import Site

_MISSING = object()
_TUPLE_LENGTHS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def needs_block_input(site: Site) -> bool:
    """Whether resuming at `site` also takes the residual stream entering its block."""
    return site.point in ("mlp_out", "attn_out")


def resumed_logits(
    model: nn.Module,
    site: Site,
    hidden: Tensor,
    ids: Tensor,
    attention_mask: Tensor | None = None,
    resid_pre: Tensor | None = None,
) -> Tensor:
    """Logits [B, T, vocabulary] with the hidden state at `site` replaced by `hidden` [B, T, d].

    `ids` and `attention_mask` [B, T] are those of the full forward. For `mlp_out` and `attn_out` block `site.index`
    itself runs, on the captured `resid_pre` [B, T, d]. The model is left as it was, whatever is raised.
    """
    with resuming(model, site, hidden, resid_pre):
        logits: Tensor = model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
    return logits


@contextmanager
def resuming(model: nn.Module, site: Site, hidden: Tensor, resid_pre: Tensor | None = None) -> Iterator[None]:
    """While open, every forward pass starts at `site` with `hidden`; see `resumed_logits`."""
    # The model gets copies wherever a tensor is put in, because some (Falcon) change hidden states in place.
    check_site(model, site)
    blocks = decoder_blocks(model)
    length = _tuple_length(model)
    inner = needs_block_input(site)
    if inner and resid_pre is None:
        raise ValueError(f"resuming at {site} needs the residual stream entering block {site.index}")
    with ExitStack() as stack:
        for block in blocks[: site.index]:
            stack.enter_context(_forward_replaced(block, _passing_on(length)))
        if site.point == "resid_post":
            stack.enter_context(_forward_replaced(blocks[site.index], _returning(hidden, length)))
        else:
            stack.enter_context(_input_replaced(blocks[site.index], hidden if resid_pre is None else resid_pre))
        if inner:
            stack.enter_context(_output_replaced(submodule(blocks[site.index], site), hidden))
        yield


def _returning(hidden: Tensor, length: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: _as_returned(hidden.clone(), length)


def _passing_on(length: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: _as_returned(block_input(args, kwargs), length)


def _as_returned(hidden: Tensor, length: int) -> Any:
    return hidden if length == 0 else (hidden, *[None] * (length - 1))


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    # An instance may already have a forward of its own (accelerate's hooks work that way).
    before = module.__dict__.get("forward", _MISSING)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is _MISSING:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


@contextmanager
def _input_replaced(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden.clone(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden.clone()}

    handle = block.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_replaced(module: nn.Module, hidden: Tensor) -> Iterator[None]:
    def replace(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (hidden.clone(), *output[1:]) if isinstance(output, tuple) else hidden.clone()

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _tuple_length(model: nn.Module) -> int:
    """How many values a block returns when nothing is cached: 0 for a bare tensor (most), else the tuple's length."""
    if model not in _TUPLE_LENGTHS:
        _TUPLE_LENGTHS[model] = _probe_tuple_length(model)
    return _TUPLE_LENGTHS[model]


def _probe_tuple_length(model: nn.Module) -> int:
    lengths: list[int] = []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        lengths.append(len(output) if isinstance(output, tuple) else 0)

    handle = decoder_blocks(model)[0].register_forward_hook(look)
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        handle.remove()
    return lengths[0]
