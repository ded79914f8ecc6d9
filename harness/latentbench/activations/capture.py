"""Reading hidden states in one forward pass that runs no further than it must."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from latentbench.activations.blocks import block_input, decoder_blocks, hidden_state
from latentbench.activations.residual import HookPoint, PairedPoint, hook_point
from latentbench.activations.vocabulary import positions_in, takes_positions
from latentbench.core.sites import Site


class _StopForwardError(Exception):
    """Leaves the forward pass once everything asked for has been read: from a hook there is no other way out of it."""


def hidden_states(
    model: nn.Module, sites: Collection[Site], ids: Tensor, attention_mask: Tensor | None = None
) -> dict[Site, Tensor]:
    """Hidden states [B, T, d] at each of `sites` for token ids [B, T], in the model's data type.

    The pass ends with the deepest block needed: later blocks, the final norm and the logits are not computed.
    Raises InvalidInput for a site the model does not have.
    """
    if not sites:
        return {}
    # `suppress` stands innermost: hooks are removed after the pass has been left, as after one that ran to its end.
    with capturing(model, sites) as states, _stopping(model, sites), suppress(_StopForwardError):
        model(input_ids=ids, use_cache=False, **_padded(model, attention_mask))
    return states


def hidden_states_and_logits(
    model: nn.Module, sites: Collection[Site], ids: Tensor, attention_mask: Tensor | None = None
) -> tuple[dict[Site, Tensor], Tensor]:
    """Hidden states [B, T, d] at each of `sites`, and the logits [B, T, vocabulary] of the same full forward pass."""
    with capturing(model, sites) as states:
        output = model(input_ids=ids, use_cache=False, **_padded(model, attention_mask))
    return states, output.logits


@contextmanager
def capturing(model: nn.Module, sites: Collection[Site]) -> Iterator[dict[Site, Tensor]]:
    """While open, every forward pass leaves the hidden states at `sites` in the dictionary this yields."""
    states: dict[Site, Tensor] = {}
    places = {site: hook_point(model, site) for site in sites}
    with ExitStack() as stack:
        for site, place in places.items():
            for handle in _watch(place, site, states):
                stack.callback(handle.remove)
        yield states


def _padded(model: nn.Module, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """What a model is told about padding. Left of a text it would shift learned positions, unless they are given."""
    if attention_mask is None:
        return {}
    told = {"attention_mask": attention_mask}
    if bool(attention_mask[:, 0].all()) or not takes_positions(model):
        return told
    return told | {"position_ids": positions_in(attention_mask)}


def _watch(place: HookPoint, site: Site, states: dict[Site, Tensor]) -> Iterator[RemovableHandle]:
    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[site] = block_input(args, kwargs).clone()  # blocks may go on to add to it in place

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states[site] = place.read(output)

    if isinstance(place, PairedPoint):
        yield from _watch_both(place, site, states)
    elif site.point == "resid_pre":
        yield place.module.register_forward_pre_hook(entering, with_kwargs=True)
    else:
        yield place.module.register_forward_hook(leaving)


def _watch_both(place: PairedPoint, site: Site, states: dict[Site, Tensor]) -> Iterator[RemovableHandle]:
    assert place.entrance is not None

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # An MLP has one argument that counts, which models name as they like.
        states[site] = hidden_state(next(iter((*args, *kwargs.values())))).clone()

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states[site] = place.paired(states[site], output)

    yield place.entrance.register_forward_pre_hook(entering, with_kwargs=True)
    # Of what a norm behind the MLP makes of its output, where there is one.
    yield place.module.register_forward_hook(leaving)


@contextmanager
def _stopping(model: nn.Module, sites: Collection[Site]) -> Iterator[None]:
    # Entered after the capturing hooks, so that of all hooks on the deepest block this one runs last.
    def stop(module: nn.Module, *values: Any) -> None:
        raise _StopForwardError

    deepest = max(site.index for site in sites)
    block = decoder_blocks(model)[deepest]
    # Where nothing but its input is wanted of the deepest block, it need not run either.
    at_entrance = all(site.point == "resid_pre" for site in sites if site.index == deepest)
    handle = block.register_forward_pre_hook(stop) if at_entrance else block.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()
