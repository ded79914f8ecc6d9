"""Path patching in the last block: which way does a vector added before it take to the logits?

A vector s at the penultimate layer perturbs what the last block reads, x → x + s. The block is run on the steered input
with parts of it computed from the plain one (Small Vectors, arXiv 2509.06608, section 7):

    no_patch        everything from x + s: steering as it is
    skip_attention  what attention adds comes from x: s acts through the residual stream, the MLP and the unembedding
    skip_layer      the whole block from x, and s added to its output: s acts on the unembedding alone
    queries, keys, values   that projection of all heads from x
    head h          head h's output from x;  only head h: every other head's output from x

The measure is KL(p_plain ‖ p_mode) at each position, in float64: what a mode keeps of no_patch's is what the paths that
are left explain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from latentbench.activations.blocks import attention_output, decoder_blocks
from latentbench.activations.values import first_tensor, with_first_tensor
from latentbench.steering.inject import VectorInjection, injecting
from latentbench.steering.mechanism.passages import Passages, trace
from latentbench_adapters.protocols import LanguageModel

Mode = Literal["no_patch", "skip_attention", "skip_layer", "queries", "keys", "values"]
MODES: tuple[Mode, ...] = ("no_patch", "skip_attention", "skip_layer", "queries", "keys", "values")

_PROJECTIONS = {"queries": ("q_proj",), "keys": ("k_proj",), "values": ("v_proj",)}
_OUTPUTS = ("o_proj", "dense", "c_proj", "out_proj")
"""Names of the projection whose input is the concatenation of all heads' outputs."""
_PLACES = 64
"""Positions whose probabilities exist in float64 at once."""


@dataclass(frozen=True)
class Patched:
    """KL(p_plain ‖ p_mode) summed over the positions that generated tokens are predicted from."""

    modes: dict[str, Tensor]
    """Mode to [B] float64; a mode is absent where the architecture has no such part."""
    heads: Tensor
    """[B, heads] with that head's output from the plain input; [B, 0] where heads cannot be told apart."""
    only_heads: Tensor
    """[B, heads] with that head alone steered."""
    tokens: Tensor
    """[B] positions."""
    positions: Tensor
    """[P] mean KL of no_patch at the p-th generated token, NaN where no passage is that long."""


@torch.no_grad()
def patched(lm: LanguageModel, injection: VectorInjection, passages: Passages) -> Patched:
    """Every mode for the injection's vector at the penultimate layer, which must be its only one."""
    batches = [_Batch(lm, injection, batch) for batch in passages.batches(lm)]
    modes: dict[str, Tensor] = {mode: torch.cat([b.modes[mode] for b in batches]) for mode in batches[0].modes}
    return Patched(
        modes,
        torch.cat([b.heads for b in batches]),
        torch.cat([b.only_heads for b in batches]),
        passages.predicting.sum(1).double().cpu(),
        _by_position([(b.no_patch, b.passages.predicting) for b in batches]),
    )


class _Batch:
    """One batch of passages through every mode."""

    def __init__(self, lm: LanguageModel, injection: VectorInjection, passages: Passages) -> None:
        self.lm, self.injection, self.passages = lm, injection, passages
        self.block = decoder_blocks(lm.model)[-1]
        self.attention = attention_output(self.block)
        self.plain, self.logits = self._plain()
        self.no_patch = self._kl(())
        self.modes = {mode: self._summed(kl) for mode in MODES if (kl := self._mode(mode)) is not None}
        joined, heads = _child(self.block, _OUTPUTS), int(getattr(lm.model.config, "num_attention_heads", 0))
        self.heads = self._heads(joined, heads, inverse=False)
        self.only_heads = self._heads(joined, heads, inverse=True)

    def _plain(self) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """What the plain pass computes inside the last block, by module; and its logits."""
        kept: dict[nn.Module, Tensor] = {}
        watched = [self.attention, *_named(self.block, [name for names in _PROJECTIONS.values() for name in names])]
        with ExitStack() as stack:
            for module in watched:
                stack.callback(module.register_forward_hook(_keeping_output(kept)).remove)
            if (joined := _child(self.block, _OUTPUTS)) is not None:
                stack.callback(joined.register_forward_pre_hook(_keeping_input(kept)).remove)
            return kept, trace(self.lm, self.passages).logits

    def _mode(self, mode: Mode) -> Tensor | None:
        if mode == "no_patch":
            return self.no_patch
        if mode == "skip_attention":
            return self._kl([_output_patched(self.attention, self.plain[self.attention])])
        if mode == "skip_layer":
            return self._kl((), layer=len(decoder_blocks(self.lm.model)) - 1)
        found = _named(self.block, _PROJECTIONS[mode])
        return self._kl([_output_patched(module, self.plain[module]) for module in found]) if found else None

    def _heads(self, joined: nn.Module | None, heads: int, inverse: bool) -> Tensor:
        if joined is None or not heads or self.plain[joined].shape[-1] % heads:
            return torch.zeros(len(self.passages), 0, dtype=torch.float64)
        plain = self.plain[joined]
        size = plain.shape[-1] // heads
        columns = []
        for head in range(heads):
            chosen = torch.zeros(plain.shape[-1], dtype=torch.bool, device=plain.device)
            chosen[head * size : (head + 1) * size] = True
            columns.append(self._summed(self._kl([_input_patched(joined, plain, ~chosen if inverse else chosen)])))
        return torch.stack(columns, 1)

    def _kl(self, patches: Any, layer: int | None = None) -> Tensor:
        """[B, T] KL(p_plain ‖ p) with `patches` in place and the vector added after `layer` (default: its own)."""
        deltas = self.injection.deltas
        if layer is not None:
            deltas = {layer: next(iter(deltas.values()))}
        deltas = {index: delta.to(self.lm.device) for index, delta in deltas.items()}
        layout = self._layout()
        with injecting(self.lm.model, deltas, self.injection.scope, layout), ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            logits = trace(self.lm, self.passages).logits
        return divergence(self.logits, logits)

    def _layout(self) -> Any:
        from latentbench.steering.intervention import Layout

        return Layout(self.passages.prompt_lengths, self.passages.real)

    def _summed(self, kl: Tensor) -> Tensor:
        return (kl * self.passages.predicting).sum(1).cpu()


def divergence(plain: Tensor, other: Tensor) -> Tensor:
    """[B, T] KL(p_plain ‖ p_other) of logits [B, T, vocabulary], in float64, a few positions at a time."""
    parts = zip(torch.split(plain, _PLACES, 1), torch.split(other, _PLACES, 1), strict=True)
    return torch.cat([_divergence(*part) for part in parts], 1)


def _divergence(plain: Tensor, other: Tensor) -> Tensor:
    return kl_div(
        other.double().log_softmax(-1), plain.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def _by_position(found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """[P] mean over passages at the p-th generated token."""
    rows = [row[chosen] for kl, predicting in found for row, chosen in zip(kl, predicting, strict=True)]
    longest = max(map(len, rows), default=0)
    padded = [torch.nn.functional.pad(row, (0, longest - len(row)), value=torch.nan) for row in rows]
    return torch.stack(padded).nanmean(0).cpu() if padded else torch.zeros(0)


def _named(block: nn.Module, names: Any) -> list[nn.Module]:
    """The attention's projections of these names."""
    return [module for path, module in block.named_modules() if path.rpartition(".")[2] in names]


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The attention's own projection: GPT-2's MLP has a `c_proj` too."""
    inside = [(path, module) for path, module in block.named_modules() if "att" in path]
    return next((module for name in names for path, module in inside if path.rpartition(".")[2] == name), None)


def _keeping_output(kept: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kept[module] = first_tensor(output).clone()

    return keep


def _keeping_input(kept: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        kept[module] = first_tensor(args).clone()

    return keep


@contextmanager
def _output_patched(module: nn.Module, value: Tensor) -> Iterator[None]:
    def patch(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return with_first_tensor(output, value.clone())

    handle = module.register_forward_hook(patch)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _input_patched(module: nn.Module, value: Tensor, chosen: Tensor) -> Iterator[None]:
    """Replaces the `chosen` [width] part of what `module` reads by `value`'s."""

    def patch(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (torch.where(chosen, value, args[0]), *args[1:])

    handle = module.register_forward_pre_hook(patch)
    try:
        yield
    finally:
        handle.remove()
