"""Adding vectors to the residual stream of a running model, through hooks that count what they do.

A vector of layer l is added to the output of decoder block l: h_l(t) ← h_l(t) + Δ_l at every token t in scope, never at
padding. Nothing but hooks is installed, so any causal language model whose blocks can be found works, with or without a
KV cache. The vectors may be parameters: gradients flow into them.

A hook that is never called changes nothing and raises nothing (a compiled or replaced forward, a block that is skipped), so
the result would be an unsteered number in a steered row. That is why every pass is counted on both ends, at the model and at
each block, and why `applied` fails where the two do not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks, hidden_state, with_first_tensor
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Scope
from latentbench.interventions.passes import PassTokens, watching_passes
from latentbench.interventions.vectors import SteeringVectors

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


class VectorInjection(Intervention):
    """Steering vectors times a scale, added at the tokens in scope.

    `relative` scales are fractions of the mean residual norm: Δ_l = scale · mean‖h_l‖ · v_l / ‖v_l‖, with the norms that
    `vectors.residual_norms` hold. Raises InvalidInput where they are missing.
    """

    def __init__(
        self, vectors: SteeringVectors, scale: float = 1.0, scope: Scope = "all", relative: bool = False
    ) -> None:
        self.vectors, self.scale, self.scope, self.relative = vectors, scale, scope, relative
        self.deltas: Mapping[int, Tensor] = vectors.scaled(scale, relative)
        """Layer to what is added there, [d_model] float32."""

    @property
    def identity(self) -> Json:
        norms = {str(layer): norm for layer, norm in self.vectors.residual_norms.items()}
        return {
            "vectors": self.vectors.digest,
            "scale": self.scale,
            "scope": self.scope,
            "relative": norms if self.relative else None,
        }

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        self.vectors.check(lm.model)
        deltas = {layer: delta.to(lm.device) for layer, delta in self.deltas.items()}
        with injecting(lm.model, deltas, self.scope, layout, idle=idle) as receipt:
            yield receipt
        # |Δ| is measured as it arrived: 0 although something was asked for means that h + Δ rounded back to h everywhere.
        if receipt.steered and not receipt.relative_size and any(map(torch.any, deltas.values())):
            raise CellFailed(
                f"steering was not applied: the vectors are so small that {lm.model.dtype} rounds all of them away; "
                "raise `scale` or run the model in a finer `dtype`"
            )


@contextmanager
def injecting(
    model: nn.Module,
    deltas: Mapping[int, Tensor],
    scope: Scope = "all",
    layout: Layout | None = None,
    *,
    idle: bool = False,
) -> Iterator[Receipt]:
    """While open, `deltas[l]` [d_model] is added to the output of block l at the tokens in `scope`.

    Raises InvalidInput for a layer the model does not have and for calls whose scope cannot be told, CellFailed on
    leaving when a pass of the model went without its hooks (see `Intervention.applied`).
    """
    blocks = decoder_blocks(model)
    if outside := [layer for layer in deltas if not 0 <= layer < len(blocks)]:
        raise InvalidInput(
            f"layers {outside} do not exist: {type(model).__name__} has {len(blocks)} decoder blocks, "
            f"numbered 0 to {len(blocks) - 1}"
        )
    hooks = _Hooks(deltas, scope)
    with ExitStack() as stack:
        for layer in deltas:
            # First of all hooks on the block, so that whoever reads its output reads the steered one. (Only who prepends a
            # hook later comes before: the other part of a stack, which is a sum, and `mechanism.passages` on purpose.)
            stack.callback(blocks[layer].register_forward_hook(hooks.adding(layer), prepend=True).remove)
        stack.enter_context(watching_passes(model, layout or Layout(), hooks.enter, hooks.leave))
        yield hooks.receipt
    hooks.close(idle)


def token_norms(states: Tensor) -> Tensor:
    """[B, T]: norms of hidden states [B, T, d], at least in float32 and never quite zero, so that they can divide."""
    return _norms(states).clamp_min(1e-30)


def _norms(states: Tensor) -> Tensor:
    # A norm in bfloat16 would be right to two digits only, and |Δ|/|h| with it.
    norms: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.promote_types(states.dtype, torch.float32))
    return norms


class _Hooks:
    """The hooks of one `injecting`, and what they have seen."""

    def __init__(self, deltas: Mapping[int, Tensor], scope: Scope) -> None:
        self.receipt = Receipt()
        self._deltas, self._scope = deltas, scope
        self._chosen: Tensor | None = None
        """[B, T] bool: the tokens of the running pass that are changed."""
        self._called: list[int] = []
        """Layers whose hooks the running pass has called."""
        self._sums: Tensor | None = None
        """Steered tokens and the sum of |Δ|/|h| over them."""
        self._wrong: list[str] = []

    def enter(self, tokens: PassTokens) -> None:
        """Before a pass: decides which of its tokens are changed."""
        # Calls start anew here and not in `leave`, which a pass that was stopped on the way never reaches: reading hidden
        # states stops behind the deepest block needed, and the layers after it are then rightly not called.
        self._chosen, self._called = tokens.in_scope(self._scope), []
        self.receipt.passes += 1
        self.receipt.tokens += int(tokens.real.sum()) * len(self._deltas)
        self.receipt.cover(tokens.order[self._chosen])

    def adding(self, layer: int) -> Hook:
        """The hook of one block: replaces its output by the steered one."""

        def add(block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = hidden_state(output)
            # Gradient checkpointing would run blocks again after the pass, and a block can be called by itself: which of
            # its tokens are in scope is then not known.
            if self._chosen is None or hidden.shape[:2] != self._chosen.shape:
                self._wrong.append(f"block {layer} ran on {list(hidden.shape[:2])} tokens outside a pass of the model")
                return output
            # A sum with a masked Δ and no assignment to the chosen tokens: in place, autograd would lose h.
            steered = hidden + self._chosen[..., None].to(hidden.dtype) * self._deltas[layer].to(hidden.dtype)
            self._note(layer, hidden, steered, self._chosen)
            return with_first_tensor(output, steered)

        return add

    def leave(self) -> None:
        """After a pass that was not stopped on the way: every layer must have had its turn, once."""
        if sorted(self._called) != sorted(self._deltas):
            self._wrong.append(
                f"a forward pass called the hooks of layers {self._called} instead of {sorted(self._deltas)}"
            )
        self._chosen = None

    def close(self, idle: bool) -> None:
        """Completes the receipt. Raises CellFailed when it does not add up."""
        if self._sums is not None:
            count, ratios = self._sums.tolist()  # the only time that the device is waited for
            self.receipt.steered = int(count)
            self.receipt.relative_size = ratios / count if count else 0.0
        if self._wrong:
            raise CellFailed(f"steering was not applied as asked: {self._wrong[0]} ({len(self._wrong)} times in all)")
        if not idle and self._deltas and not self.receipt.calls:
            raise CellFailed("steering was not applied: the model did not run while its hooks were installed")

    def _note(self, layer: int, hidden: Tensor, steered: Tensor, chosen: Tensor) -> None:
        """Leaves the trace of a change from `hidden` to `steered` [B, T, d] in the receipt."""
        self._called.append(layer)
        self.receipt.calls += 1
        with torch.no_grad():
            # What arrived, not what was asked for: a model in half precision may round a small vector away.
            change = _norms(steered - hidden)
            ratios = (change * chosen / token_norms(hidden)).double()
            sums = torch.stack([chosen.double().sum(), ratios.sum()])
            # Kept on the device: reading a number from it at every layer would make an accelerator wait.
            self._sums = sums if self._sums is None else self._sums + sums
