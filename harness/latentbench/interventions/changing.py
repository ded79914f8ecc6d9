"""Changing hidden states of a running model, through hooks that count what they do.

Nothing but hooks is installed, so any causal language model whose blocks can be found works, with or without a KV cache.

A hook that is never called changes nothing and raises nothing (a compiled or replaced forward, a block that is skipped), so
the result would be an unsteered number in a steered row. That is why every pass is counted on both ends, at the model and at
each place, and why `changing` fails where the two do not agree.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import (
    block_input,
    decoder_blocks,
    hidden_state,
    with_block_input,
    with_first_tensor,
)
from latentbench.activations.residual import HookPoint, hook_point
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.sites import Place, Site
from latentbench.interventions.changes import PLAIN, Change, Condition, Use
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Scope, Watch
from latentbench.interventions.passes import PassTokens, watching_passes


class StateChange(Intervention):
    """An intervention that changes hidden states at some sites, by `changing`."""

    use: Use

    @property
    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """Where hidden states are changed."""

    def where(self, condition: Condition) -> Self:
        """The same, only where `condition` holds. Raises InvalidInput for one that is read behind a place of the change."""
        if behind := [site for site in self.sites if _order(site) < _order(condition.site)]:
            raise InvalidInput(
                f"a condition on the hidden state at {condition.site} comes too late for the change at {behind[0]}: read it "
                "at or before the first layer that is changed"
            )
        made = copy(self)
        made.use = replace(self.use, condition=condition)
        return made


@contextmanager
def changing(
    model: nn.Module,
    changes: Mapping[Site, Change],
    scope: Scope = "all",
    use: Use = PLAIN,
    layout: Layout | None = None,
    *,
    tokenizer: Any = None,
    idle: bool = False,
) -> Iterator[Receipt]:
    """While open, what each change says is done at its site, at the tokens in `scope` and never at padding.

    `tokenizer` is needed where `use` finds places by text. Raises InvalidInput for a layer the model does not have and for
    calls whose scope cannot be told, CellFailed on leaving when a pass of the model went without its hooks (see
    `Intervention.applied`).
    """
    places = {site: _place(model, site) for site in changes}
    layout = layout or Layout()
    hooks = _Hooks(changes, scope, use, tokenizer, layout.watch)
    with ExitStack() as stack:
        for site, place in places.items():
            # First of all hooks on the block, so that whoever reads its output reads the steered one. (Only who prepends a
            # hook later comes before: the parts of a stack before this one, and `mechanism.passages` on purpose.)
            stack.callback(_hooked(site, place, hooks.at(site)))
        if use.condition is not None:
            read = use.condition.site  # and before them: it is told by the state as it arrives
            stack.callback(_hooked(read, _place(model, read), hooks.reading(use.condition)))
        stack.enter_context(watching_passes(model, layout, hooks.enter, hooks.leave))
        yield hooks.receipt
    hooks.close(idle)


def token_norms(states: Tensor) -> Tensor:
    """[B, T]: norms of hidden states [B, T, d], at least in float32 and never quite zero, so that they can divide."""
    return _norms(states).clamp_min(1e-30)


def _norms(states: Tensor) -> Tensor:
    # A norm in bfloat16 would be right to two digits only, and |Δ|/|h| with it.
    norms: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.promote_types(states.dtype, torch.float32))
    return norms


def _place(model: nn.Module, site: Site) -> HookPoint:
    """Where a site is hooked. Raises InvalidInput for one that the model does not have."""
    if site.point != "resid_post":
        return hook_point(model, site)
    blocks = decoder_blocks(model)
    if not 0 <= site.index < len(blocks):
        raise InvalidInput(
            f"layers {[site.index]} do not exist: {type(model).__name__} has {len(blocks)} decoder blocks, "
            f"numbered 0 to {len(blocks) - 1}"
        )
    return HookPoint(blocks[site.index])  # its output is the stream, which needs no measuring


REACHED: tuple[Place, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""The points of a block in the order in which a pass reaches them."""
Replace = Callable[[Tensor], Tensor | None]
"""Hidden states [B, T, d] → what stands there instead; None: nothing else."""


def _hooked(site: Site, place: HookPoint, instead: Replace) -> Callable[[], None]:
    """Hooks a site, before all other hooks on it; returns how to undo that."""

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = hidden_state(output) if site.point == "resid_post" else place.read(output)
        steered = instead(hidden)
        if steered is None:
            return output
        # What a part adds may be multiplied first: only its change is written, so that the rest keeps every bit.
        whole = site.point == "resid_post"
        return with_first_tensor(output, steered) if whole else place.moved(output, steered - hidden)

    def arriving(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        steered = instead(block_input(args, kwargs))
        return (args, kwargs) if steered is None else with_block_input(args, kwargs, steered)

    if site.point == "resid_pre":
        return place.module.register_forward_pre_hook(arriving, prepend=True, with_kwargs=True).remove
    return place.module.register_forward_hook(leaving, prepend=True).remove


class _Hooks:
    """The hooks of one `changing`, and what they have seen."""

    def __init__(
        self, changes: Mapping[Site, Change], scope: Scope, use: Use, tokenizer: Any, watch: Watch | None
    ) -> None:
        self.receipt = Receipt()
        self._changes = {site: use.change(change) for site, change in changes.items()}
        self._scope, self._use, self._tokenizer = scope, use, tokenizer
        self._watch = watch
        self._strength: Tensor | None = None
        """[B, T] bool or float32: how strongly the tokens of the running pass are changed; None outside of one."""
        self._order = torch.empty(0)
        """[B, T] int: positions of those tokens."""
        self._told = False
        """Whether the condition has been read in the running pass."""
        self._called: list[Site] = []
        """Sites whose hooks the running pass has called."""
        self._sums: Tensor | None = None
        """Steered tokens and the sum of |Δ|/|h| over them."""
        self._reach: Tensor | None = None
        """Lowest and highest position that was changed."""
        self._reached: Tensor | None = None
        """The tokens of the running pass that this was last told by."""
        self._wrong: list[str] = []

    def enter(self, tokens: PassTokens) -> None:
        """Before a pass: decides which of its tokens are changed."""
        # Calls start anew here and not in `leave`, which a pass that was stopped on the way never reaches: reading hidden
        # states stops behind the deepest block needed, and the layers after it are then rightly not called.
        self._strength, self._called = self._use.places.strength(tokens, self._scope, self._tokenizer), []
        self._reached = None
        self._order, self._told = tokens.order, self._use.condition is None
        self.receipt.passes += 1
        self.receipt.tokens += int(tokens.real.sum()) * len(self._changes)

    def at(self, site: Site) -> Replace:
        """What happens at a site: the hidden states are replaced by the steered ones."""

        def change(hidden: Tensor) -> Tensor | None:
            if (strength := self._strength_at(site, hidden)) is None:
                return None
            if not self._told:
                self._wrong.append(f"block {_name(site)} ran before the place that its condition is read at")
                return None
            steered, changed = self._changes[site](hidden, strength)
            self._note(site, hidden, steered, changed)
            return steered

        return change

    def reading(self, condition: Condition) -> Replace:
        """What happens where a condition reads: nothing, but the other tokens of the pass have no strength any more."""

        def read(hidden: Tensor) -> None:
            if (strength := self._strength_at(condition.site, hidden)) is not None:
                self._strength, self._told = strength * condition.holds(hidden), True

        return read

    def leave(self) -> None:
        """After a pass that was not stopped on the way: every layer must have had its turn, once."""
        called, expected = (
            [_name(site) for site in sorted(sites, key=_order)] for sites in (self._called, self._changes)
        )
        if called != expected:
            self._wrong.append(
                f"a forward pass called the hooks of layers [{', '.join(map(_name, self._called))}] instead of "
                f"[{', '.join(expected)}]"
            )
        self._strength = None

    def close(self, idle: bool) -> None:
        """Completes the receipt. Raises CellFailed when it does not add up."""
        if self._sums is not None and self._reach is not None:  # the only time that the device is waited for
            count, ratios = self._sums.tolist()
            self.receipt.steered = int(count)
            self.receipt.relative_size = ratios / count if count else 0.0
            self.receipt.cover(self._reach[: 2 * bool(count)])
        if self._wrong:
            raise CellFailed(f"steering was not applied as asked: {self._wrong[0]} ({len(self._wrong)} times in all)")
        if not idle and self._changes and not self.receipt.calls:
            raise CellFailed("steering was not applied: the model did not run while its hooks were installed")

    def _strength_at(self, site: Site, hidden: Tensor) -> Tensor | None:
        """The strength at the tokens of hidden states [B, T, d], None where it is not known."""
        # Gradient checkpointing would run blocks again after the pass, and a block can be called by itself: which of
        # its tokens are in scope is then not known.
        if self._strength is None or hidden.shape[:2] != self._strength.shape:
            seen = list(hidden.shape[:2])
            self._wrong.append(f"block {_name(site)} ran on {seen} tokens outside a pass of the model")
            return None
        return self._strength

    def _note(self, site: Site, hidden: Tensor, steered: Tensor, changed: Tensor) -> None:
        """Leaves the trace of a change from `hidden` to `steered` [B, T, d] in the receipt."""
        self._called.append(site)
        self.receipt.calls += 1
        with torch.no_grad():
            # What arrived, not what was asked for: a model in half precision may round a small vector away.
            change = _norms(steered - hidden)
            ratios = (change * changed / token_norms(hidden)).double()
            sums = torch.stack([changed.double().sum(), ratios.sum()])
            # Kept on the device: reading a number from it at every layer would make an accelerator wait.
            self._sums = sums if self._sums is None else self._sums + sums
            if changed is not self._reached:  # most changes are at the same tokens in all layers
                self._reached, self._reach = changed, _reach(self._order, changed, self._reach)
            if self._watch is not None:
                self._watch(site, hidden, steered, changed)


def _reach(order: Tensor, changed: Tensor, before: Tensor | None) -> Tensor:
    """[2] the lowest and the highest position that was changed, here or before."""
    far = torch.iinfo(order.dtype).max
    low, high = order.masked_fill(~changed, far).amin(), order.masked_fill(~changed, -1).amax()
    return torch.stack([low, high] if before is None else [low.minimum(before[0]), high.maximum(before[1])])


def _name(site: Site) -> str:
    """How messages call a site: the number of the block whose output it is, as vectors do, or in full."""
    return str(site.index) if site.point == "resid_post" else str(site)


def _order(site: Site) -> tuple[int, int]:
    """Sites are sorted by where they are reached in a pass, which their names would not do."""
    return site.index, REACHED.index(site.point)
