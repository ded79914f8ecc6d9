"""What reinforcement learning can train: vectors, or an adapter. Installed on a model for a while, then gone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from latentbench.steering.inject import injecting
from latentbench.steering.intervention import Layout, Scope
from latentbench.steering.lora import installed_lora
from latentbench.steering.making import width_of
from latentbench_adapters.protocols import LanguageModel

Parameters = Mapping[str, nn.Parameter]


class Trainable(ABC):
    """Parameters that change a model while they are installed."""

    layers: tuple[int, ...]

    @abstractmethod
    def installed(self, lm: LanguageModel, layout: Layout) -> Any:
        """A context that yields the parameters by name; the model's own weights stay frozen."""

    def learning_rates(self, rate: float, units: Mapping[int, float]) -> dict[str, float]:
        """The learning rate of every parameter that has one of its own; `units` are per layer."""
        return {}


class TrainableVectors(Trainable):
    """One vector per layer, from zero, in float32."""

    def __init__(self, layers: tuple[int, ...], scope: Scope) -> None:
        self.layers, self._scope = layers, scope

    @contextmanager
    def installed(self, lm: LanguageModel, layout: Layout) -> Iterator[Parameters]:
        """The vectors are a child of the model, so that trainers find them, and hooks add them."""
        width, model = width_of(lm.model), lm.model
        vectors = {layer: nn.Parameter(torch.zeros(width, device=lm.device)) for layer in self.layers}
        named = {f"layer_{layer}": vector for layer, vector in vectors.items()}
        model.add_module("steering", nn.ParameterDict(named))
        try:
            with injecting(model, vectors, self._scope, layout, idle=True):
                yield named
        finally:
            del model.steering

    def learning_rates(self, rate: float, units: Mapping[int, float]) -> dict[str, float]:
        return {f"layer_{layer}": rate * units[layer] for layer in self.layers}


class TrainableLora(Trainable):
    """peft's LoRA layers on down-projections; A random, B zero."""

    def __init__(self, layers: tuple[int, ...], rank: int, seed: int) -> None:
        self.layers, self._rank, self._seed = layers, rank, seed

    @contextmanager
    def installed(self, lm: LanguageModel, layout: Layout) -> Iterator[Parameters]:
        with torch.random.fork_rng(devices=[]), installed_lora(lm, self.layers, self._rank) as adapters:
            torch.manual_seed(self._seed)
            for adapter in adapters.values():
                adapter.reset_lora_parameters("default", True)
            yield {
                f"{kind}.{layer}": getattr(adapter, f"lora_{kind}")["default"].weight
                for layer, adapter in adapters.items()
                for kind in ("A", "B")
            }
