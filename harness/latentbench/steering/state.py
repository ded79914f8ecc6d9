"""Checkpoints of a training by reinforcement: one safetensors file, so that all of it appears at once; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from latentbench.section import Json
from latentbench.store.files import write_bytes

FILE = "reinforce.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Everything that the next step depends on, apart from the section and its seed."""

    step: int = 0
    """Steps done."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Adam's running averages by parameter; the number of steps is `step` for all."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the checkpoint that is kept."""
    best_step: int = 0
    best_accuracy: float | None = None
    curve: list[Json] = field(default_factory=list)
    """One entry per step, see `latentbench.steering.reinforce`."""

    def take(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Copies the weights and the optimizer's averages."""
        self.weights = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
        self.moments = {}
        for name, parameter in parameters.items():
            state = optimizer.state.get(parameter, {})
            if state:
                self.moments[name] = {moment: state[moment].detach().cpu().clone() for moment in _MOMENTS}

    def give(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Puts them back."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                parameters[name].copy_(weight)
        for name, moments in self.moments.items():
            parameter = parameters[name]
            restored: dict[str, Any] = {key: moment.to(parameter.device).clone() for key, moment in moments.items()}
            optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **restored}

    def save(self, folder: Path) -> None:
        """Replaces the checkpoint in `folder`."""
        tensors = {f"weight/{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {f"best/{name}": tensor.clone() for name, tensor in self.best.items()}
        tensors |= {f"{key}/{name}": t for name, moments in self.moments.items() for key, t in moments.items()}
        numbers = {
            "step": self.step,
            "best_step": self.best_step,
            "best_accuracy": self.best_accuracy,
            "curve": self.curve,
        }
        write_bytes(folder / FILE, save(tensors, {"state": json.dumps(numbers, allow_nan=False)}))

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """The checkpoint in `folder`, or a fresh start where there is none or it is damaged."""
        try:
            with safe_open(folder / FILE, framework="pt") as file:
                numbers = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return cls()
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor
        moments = {n: {key: parts[key][n] for key in _MOMENTS} for n in parts.get(_MOMENTS[0], {})}
        return cls(weights=parts.get("weight", {}), moments=moments, best=parts.get("best", {}), **numbers)
