"""Low-rank adapters on down-projections: a baseline that is a vector with a size of its own at every token (rank 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks, first_tensor, mlp_output
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json
from latentbench.interventions.injection import token_norms
from latentbench.interventions.intervention import Intervention, Layout, Receipt
from latentbench.interventions.passes import PassTokens, watching_passes

# The last matrix of an MLP as the architectures of transformers call it.
_NAMES = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "wo", "dense_output")


class LoraAdapter(Intervention):
    """A trained adapter: weights `A.l` [r, d_ff] and `B.l` [d_model, r]; Δ = scale · B A u at the projection's output.

    u [d_ff] is what the projection reads (LoRA, arXiv 2106.09685, with α = r, so that nothing but `scale` multiplies). Raises
    InvalidInput when it is switched on in a model whose projections have other shapes.
    """

    def __init__(self, weights: Mapping[str, Tensor], layers: tuple[int, ...], rank: int, scale: float = 1.0) -> None:
        self.weights, self.layers, self.rank, self.scale = dict(weights), layers, rank, scale

    @property
    def identity(self) -> Json:
        total = sha256()
        for name, weight in sorted(self.weights.items()):
            total.update(f"{name} {list(weight.shape)}\n".encode() + weight.float().contiguous().numpy().tobytes())
        return {"lora": total.hexdigest(), "scale": self.scale}

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        """Like every intervention's; padding is adapted too, which nothing attends to."""
        with installed_lora(lm, self.layers, self.rank) as adapters, ExitStack() as stack:
            self._fill(adapters)
            seen = _Seen(len(adapters))
            stack.enter_context(watching_passes(lm.model, layout or Layout(), seen.enter, seen.leave))
            blocks = decoder_blocks(lm.model)
            for layer, adapter in adapters.items():
                stack.callback(adapter.lora_B["default"].register_forward_hook(seen.added(layer, self.scale)).remove)
                stack.callback(blocks[layer].register_forward_hook(seen.passed(layer)).remove)
            yield seen.receipt
        seen.close(idle)

    def _fill(self, adapters: Mapping[int, Any]) -> None:
        with torch.no_grad():
            for layer, adapter in adapters.items():
                for kind in ("A", "B"):
                    weight = getattr(adapter, f"lora_{kind}")["default"].weight
                    given = self.weights.get(f"{kind}.{layer}")
                    if given is None or given.shape != weight.shape:
                        raise InvalidInput(
                            f"the adapter's {kind}.{layer} is {None if given is None else list(given.shape)}, this model "
                            f"asks for {list(weight.shape)}: it was trained on another model"
                        )
                    weight.copy_(given)
                adapter.set_scale("default", self.scale)


@contextmanager
def installed_lora(lm: LanguageModel, layers: tuple[int, ...], rank: int) -> Iterator[dict[int, Any]]:
    """While open, the down-projections of `layers` are peft's LoRA layers (α = rank, no dropout), yielded by layer."""
    from peft import LoraConfig, inject_adapter_in_model

    names, attributes = down_projections(lm.model, layers), set(vars(lm.model))
    # peft freezes every parameter but its own, and leaves attributes such as `peft_config` on the model.
    frozen = {name: parameter.requires_grad for name, parameter in lm.model.named_parameters()}
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(names.values()))
    inject_adapter_in_model(config, lm.model)
    adapters: dict[int, Any] = {layer: lm.model.get_submodule(name) for layer, name in names.items()}
    for adapter in adapters.values():
        for part in (adapter.lora_A["default"], adapter.lora_B["default"]):
            # Small steps would round away in half precision. peft casts what goes in and what comes out.
            part.to(torch.promote_types(part.weight.dtype, torch.float32))
    try:
        yield adapters
    finally:
        # Taken out by hand: peft's own `unload` is a method of its wrapper around a whole model, which is not made here.
        for name in names.values():
            parent, _, child = name.rpartition(".")
            layer: Any = lm.model.get_submodule(name)
            setattr(lm.model.get_submodule(parent), child, layer.get_base_layer())
        for name, parameter in lm.model.named_parameters():
            parameter.requires_grad_(frozen[name])
        for name in set(vars(lm.model)) - attributes:
            delattr(lm.model, name)


def down_projections(model: nn.Module, layers: tuple[int, ...]) -> dict[int, str]:
    """Layer to the name of the module that ends its MLP. Raises InvalidInput where none has a known name."""
    paths = {module: name for name, module in model.named_modules()}
    blocks = decoder_blocks(model)
    return {layer: paths[_down_projection(blocks[layer])] for layer in layers}


def _down_projection(block: nn.Module) -> nn.Module:
    # Looked for inside the MLP first: GPT-2's attention ends in a `c_proj` too.
    mlp = next((child for name, child in block.named_children() if name in ("mlp", "feed_forward", "ffn")), None)
    within = (mlp or mlp_output(block)).named_modules()
    by_name: dict[str, nn.Module] = dict(block.named_children()) | {
        name.rpartition(".")[2]: module for name, module in within
    }
    found = next((by_name[name] for name in _NAMES if hasattr(by_name.get(name), "weight")), None)
    if found is not None:
        return found
    raise InvalidInput(f"{type(block).__name__}: no down-projection found; looked for {', '.join(_NAMES)}")


class _Seen:
    """What the adapters added, and to which hidden states."""

    def __init__(self, layers: int) -> None:
        self.receipt = Receipt()
        self._layers, self._expected, self._ratios = layers, 0, 0.0
        self._real: Tensor | None = None
        """[B, T] bool: no padding, of the running pass."""
        self._deltas: dict[int, Tensor] = {}
        """Layer to the norms [B, T] of what its adapter has just added, until its block is through."""

    def enter(self, tokens: PassTokens) -> None:
        """Before a pass."""
        self._real = tokens.real
        self.receipt.passes += 1
        self.receipt.tokens += int(tokens.real.sum()) * self._layers
        self.receipt.cover(tokens.order[tokens.real])

    def leave(self) -> None:
        """After a pass that was not stopped on the way."""
        self._expected += self._layers
        self._real = None

    def added(self, layer: int, scale: float) -> Any:
        """Hook of an adapter's second matrix."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._deltas[layer] = abs(scale) * token_norms(output)

        return hook

    def passed(self, layer: int) -> Any:
        """Hook of a block, once its adapter has run."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            delta = self._deltas.pop(layer, None)
            if delta is None or self._real is None:
                return
            self.receipt.calls += 1
            self.receipt.steered += int(self._real.sum())
            self._ratios += float((delta / token_norms(first_tensor(output)))[self._real].sum())

        return hook

    def close(self, idle: bool) -> None:
        """Completes the receipt. Raises CellFailed when a pass went without the adapters."""
        receipt = self.receipt
        receipt.relative_size = self._ratios / receipt.steered if receipt.steered else 0.0
        if receipt.calls < self._expected or not (idle or receipt.calls):
            raise CellFailed(
                f"the adapter was not applied as asked: {receipt.calls} calls, not {self._expected}, "
                f"in {receipt.passes} passes through {self._layers} layers"
            )
