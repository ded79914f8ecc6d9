"""Low-rank adapters on down-projections: a baseline that is a vector with a size of its own at every token (rank 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from latentbench.activations.blocks import decoder_blocks, first_tensor, hidden_state, input_device, mlp_output
from latentbench.activations.measured_once import once_per_model
from latentbench.activations.residual import hook_point
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changing import token_norms
from latentbench.interventions.intervention import Intervention, Layout, Receipt
from latentbench.interventions.passes import PassTokens, watching_passes

# The last matrix of an MLP as the architectures of transformers call it.
_MLPS = ("mlp", "feed_forward", "ffn")
_NAMES = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "wo", "Wo", "dense_output", "output_linear")
_ROUNDINGS = 16
"""How far two tokens may be apart that should be given the same, in units of the data type's precision."""


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

    names = down_projections(lm.model, layers)
    # peft gets the matrices and not the model: it would freeze everything else, look for names that end alike, and in models
    # whose type is one with experts adapt those instead.
    held = nn.ModuleDict({str(layer): lm.model.get_submodule(name) for layer, name in names.items()})
    frozen = {parameter: parameter.requires_grad for parameter in held.parameters()}
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(held))
    inject_adapter_in_model(config, held)
    adapters: dict[int, Any] = {layer: held[str(layer)] for layer in names}
    for layer, adapter in adapters.items():
        _put(lm.model, names[layer], adapter)
        for part in (adapter.lora_A["default"], adapter.lora_B["default"]):
            # Small steps would round away in half precision. peft casts what goes in and what comes out.
            part.to(torch.promote_types(part.weight.dtype, torch.float32))
    try:
        yield adapters
    finally:
        # Taken out by hand: peft's own `unload` is a method of its wrapper around a whole model, which is not made here.
        for layer, adapter in adapters.items():
            _put(lm.model, names[layer], adapter.get_base_layer())
        for parameter, trained in frozen.items():
            parameter.requires_grad_(trained)


@contextmanager
def trainable_lora(
    lm: LanguageModel, layers: tuple[int, ...], rank: int, seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    """While open, `installed_lora` with A from the seed and B zero, no change at all; its weights, by `A.<layer>` and `B.<layer>`."""
    # peft draws A from the global generator on installing it; drawn anew here.
    with torch.random.fork_rng(devices=[]), installed_lora(lm, layers, rank) as adapters:
        torch.manual_seed(seed)
        for adapter in adapters.values():
            adapter.reset_lora_parameters("default", True)
        yield {
            f"{kind}.{layer}": getattr(adapter, f"lora_{kind}")["default"].weight
            for layer, adapter in adapters.items()
            for kind in ("A", "B")
        }


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def down_projections(model: nn.Module, layers: tuple[int, ...]) -> dict[int, str]:
    """Layer to the name of the module that ends its MLP.

    Raises InvalidInput where none has a known name, where it is no plain matrix, and where it is only a part of what the MLP
    adds: an adapter there would be another baseline than the one that is reported (see `_shares`).
    """
    paths = {module: name for name, module in model.named_modules()}
    blocks = decoder_blocks(model)
    for layer in layers:
        _check_whole(model, layer, paths)
    return {layer: paths[_down_projection(blocks[layer])] for layer in layers}


def _down_projection(block: nn.Module) -> nn.Module:
    # Looked for inside the MLP first: GPT-2's attention ends in a `c_proj` too.
    within = _mlp(block).named_modules()
    by_name: dict[str, nn.Module] = dict(block.named_children()) | {
        name.rpartition(".")[2]: module for name, module in within
    }
    found = next((by_name[name] for name in _NAMES if hasattr(by_name.get(name), "weight")), None)
    if found is not None:
        return found
    experts = any("expert" in name for name, _ in block.named_modules())
    raise InvalidInput(
        f"{type(block).__name__}: no down-projection found{', its MLP is a mixture of experts' if experts else ''}; looked "
        f"for {', '.join(_NAMES)}; steer by vectors instead"
    )


def _mlp(block: nn.Module) -> nn.Module:
    return next((child for name, child in block.named_children() if name in _MLPS), None) or mlp_output(block)


def _check_whole(model: nn.Module, layer: int, paths: Mapping[nn.Module, str]) -> None:
    """Raises InvalidInput where an adapter on a layer's down-projection would not adapt all that its MLP adds."""
    hook_point(model, Site(index=layer))  # one residual stream, or there is nothing to compare an adapter's size with
    found = _down_projection(block := decoder_blocks(model)[layer])
    wrong = _shares(model)[layer]
    if not isinstance(found, nn.Linear | Conv1D):
        wrong = f"is no matrix but {type(found).__name__}"
    if wrong:
        raise InvalidInput(
            f"{type(block).__name__} (layer {layer}): {paths[found]} {wrong}; the LoRA baseline adapts the matrix that ends "
            "a whole MLP: choose layers without experts, or steer by vectors"
        )


@once_per_model
def _shares(model: nn.Module) -> dict[int, str]:
    """Layer to what is wrong with its down-projection as the end of the MLP; empty where all that the MLP adds is in it.

    Measured in one pass over a few tokens in which every down-projection puts out the same vector for each of them. A whole
    MLP then adds the same to each; one with experts, of which some shared one was found, or with a gate behind it, does not.
    """
    watched: dict[int, _Planted] = {}
    for layer, block in enumerate(decoder_blocks(model)):
        with suppress(InvalidInput):  # whoever asks for this layer is told why
            watched[layer] = _Planted(_down_projection(block), _end(block))
    # Two ids that every model knows, in turn: every token has another past, and so another hidden state.
    ids = torch.tensor([[0, 1] * 4], device=input_device(model))
    with ExitStack() as stack:
        for planted in watched.values():
            stack.callback(planted.projection.register_forward_hook(planted.replacing).remove)
            stack.callback(planted.end.register_forward_hook(planted.reading, with_kwargs=True).remove)
        model(input_ids=ids, use_cache=False)
    return {layer: planted.wrong(ids.numel()) for layer, planted in watched.items()}


def _end(block: nn.Module) -> nn.Module:
    """The module whose output is what the MLP adds, or the MLP itself where that adds the residual stream too (BLOOM)."""
    try:
        return mlp_output(block)
    except InvalidInput:
        return _mlp(block)


class _Planted:
    """A down-projection that puts out one vector for all tokens, and what its MLP makes of it."""

    def __init__(self, projection: nn.Module, end: nn.Module) -> None:
        self.projection, self.end = projection, end
        self._tokens: list[int] = []
        """How many there were each time that it ran."""
        self._added: list[Tensor] = []

    def replacing(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook of the projection."""
        self._tokens.append(output.shape[:-1].numel())
        vector = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(0))
        return vector.to(output).expand_as(output).clone()  # what follows may write into it

    def reading(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook of the MLP's end."""
        given = signature(module.forward).bind_partial(*args, **kwargs).arguments
        added = first_tensor(output)
        self._added.append((added - given["residual"] if "residual" in given else added.clone()).flatten(0, -2))

    def wrong(self, tokens: int) -> str:
        """Why the projection is not the end of all that the MLP adds."""
        if self._tokens != [tokens]:
            return "does not run once for every token"
        (added,) = self._added
        precision = torch.finfo(added.dtype).eps * _ROUNDINGS
        if float((added - added[:1]).abs().max()) > precision * float(added.abs().max()):
            return "is only a part of what this MLP adds (experts or a gate stand beside it)"
        return ""


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
            norms = token_norms(hidden_state(output))
            # OPT's matrix is given the tokens of all texts in one row.
            self._ratios += float((delta.reshape(norms.shape) / norms)[self._real].sum())

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
