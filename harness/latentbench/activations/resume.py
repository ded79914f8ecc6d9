"""The resumed forward: what the model says when one hidden state is replaced, without running the blocks before it.

The model's own forward is run, so masks, positions, rotary embeddings, final norm and soft-capping are exactly its
own; only the blocks up to the site are replaced by pass-throughs. Given the hidden state that was captured, the logits
are bit-identical to those of the full forward, and equal to rounding at the parts of a block that scales what they add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import block_input, decoder_blocks, input_device, with_block_input
from latentbench.activations.capture import hidden_states_and_logits
from latentbench.activations.measured_once import once_per_model
from latentbench.activations.residual import HookPoint, additions, hook_point
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site, resumed_from

_MISSING = object()
_ROUNDINGS = 16
"""How far logits may be off, in units of the data type's precision: on one device they are off by nothing."""


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


@once_per_model
def resumes_at_the_end(model: nn.Module) -> bool:
    """Whether what the last block puts out is all that norm and head need: two short texts, one padded, give the same logits
    bit for bit when they are resumed there.
    """
    last = last_site(model)
    ids = torch.tensor([[0, 1] * 4] * 2, device=next(model.parameters()).device)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    try:
        states, whole = hidden_states_and_logits(model, [last], ids, mask)
        return torch.equal(resumed_logits(model, last, states[last], ids, mask), whole)
    except (InvalidInput, LookupError, AttributeError, TypeError):
        return False


def last_site(model: nn.Module) -> Site:
    """What the last block puts out."""
    return Site(index=len(decoder_blocks(model)) - 1)


@contextmanager
def resuming(model: nn.Module, site: Site, hidden: Tensor, resid_pre: Tensor | None = None) -> Iterator[None]:
    """While open, every forward pass starts at `site` with `hidden`; see `resumed_logits`.

    Raises InvalidInput for a site the model does not have (see `hook_point`) and for a model whose blocks hand on more than
    their hidden state, which a pass that starts in the middle would lack.
    """
    place, blocks = hook_point(model, site), decoder_blocks(model)
    inner = bool(resumed_from(site))
    if inner and resid_pre is None:
        raise ValueError(f"resuming at {site} needs the residual stream entering block {site.index}")
    # The first block that runs must get all it needs from `hidden`: the next one where a block's output is replaced.
    _check_handover(model, blocks, site.index + (site.point == "resid_post"))
    with ExitStack() as stack:
        if site.point == "resid_post":
            stack.enter_context(_passed(model, blocks, site.index))
            length = additions(model)[site.index].tuple_length
            stack.enter_context(_forward_replaced(blocks[site.index], _returning(hidden, length)))
        else:
            # For a part of the block, the block runs as it did, on what entered it, and only the part's output is another.
            stack.enter_context(_entered(model, blocks, site.index, hidden if resid_pre is None else resid_pre))
        if inner:
            stack.enter_context(_output_replaced(place, hidden))
        yield


@contextmanager
def _passed(model: nn.Module, blocks: nn.ModuleList, index: int) -> Iterator[None]:
    """While open, the blocks before `index` hand on what they get."""
    with ExitStack() as stack:
        # A model unpacks what its blocks return, so each stand-in returns a tuple as long as its block's, or a bare tensor.
        for block, known in zip(blocks[:index], additions(model), strict=False):
            stack.enter_context(_forward_replaced(block, _passing_on(known.tuple_length)))
        yield


@contextmanager
def _entered(model: nn.Module, blocks: nn.ModuleList, index: int, hidden: Tensor) -> Iterator[None]:
    """While open, passes start at block `index` with `hidden` [B, T, d]."""
    with _passed(model, blocks, index), _input_replaced(blocks[index], hidden):
        yield


def _check_handover(model: nn.Module, blocks: nn.ModuleList, index: int) -> None:
    """Raises InvalidInput when block `index` gets more from the blocks before it than one hidden state."""
    # The first block gets the embeddings and nothing from a block; behind the last one only norm and head are left.
    if 0 < index < len(blocks) and not _hidden_state_is_all(model, index):
        raise InvalidInput(
            f"{type(model).__name__}: block {index} and those behind it get more from the blocks before them than the "
            "residual stream, so the forward pass cannot be resumed there: cross-entropies with reconstructions in its "
            "place, ablations and attributions are not possible at this site"
        )


@once_per_model
def _hidden_state_is_all(model: nn.Module, index: int) -> bool:
    """Whether a pass over a few tokens that is resumed at a block gives the logits of the whole one."""
    blocks = decoder_blocks(model)
    # Two ids that every model knows, in turn: with one alone, attention could average over equal values and lose nothing.
    ids = torch.tensor([[0, 1] * 4], device=input_device(model))
    entering: list[Tensor] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(block_input(args, kwargs).clone())

    handle = blocks[index].register_forward_pre_hook(note, with_kwargs=True)
    whole: Tensor = model(input_ids=ids, use_cache=False).logits
    handle.remove()
    # Gemma 4 misses keys and values that blocks share, others go on without what they lack.
    try:
        with _entered(model, blocks, index, entering[-1]):
            resumed: Tensor = model(input_ids=ids, use_cache=False).logits
    except (LookupError, AttributeError, TypeError):
        return False
    tolerance = _ROUNDINGS * torch.finfo(whole.dtype).eps
    # A logit that is no finite number says nothing of the size of the others; it has to be the same in both.
    size = float(whole.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(resumed, whole, rtol=tolerance, atol=tolerance * size, equal_nan=True)


def _returning(hidden: Tensor, length: int) -> Callable[..., Any]:
    # A clone in every pass: the next block may add to it in place, and callers go on to use theirs.
    return lambda *args, **kwargs: _as_returned(hidden.clone(), length)


def _passing_on(length: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: _as_returned(block_input(args, kwargs), length)


def _as_returned(hidden: Tensor, length: int) -> Any:
    return hidden if length == 0 else (hidden, *[None] * (length - 1))


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    # Not a hook, which could change what a block returns but not spare it the work. A forward of the instance goes before
    # that of the class; it may have one already (accelerate's hooks work that way), which is put back.
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
        return with_block_input(args, kwargs, hidden.clone())

    handle = block.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_replaced(place: HookPoint, hidden: Tensor) -> Iterator[None]:
    handle = place.module.register_forward_hook(lambda module, args, output: place.written(output, hidden))
    try:
        yield
    finally:
        handle.remove()
