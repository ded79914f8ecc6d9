"""Steering vectors: one vector per layer, of one model, in a safetensors file that says which.

A vector of layer l is added to the output of decoder block l, the residual stream after the block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks
from latentbench.border import foreign
from latentbench.canonical import canonical
from latentbench.errors import InvalidInput, RefusedFile
from latentbench.section import Json
from latentbench.store.files import write_bytes

FORMAT, SCHEMA = "latentbench.steering", "1"


@dataclass(frozen=True)
class SteeringVectors:
    """Vectors [d_model] float32 on the CPU, by layer."""

    vectors: Mapping[int, Tensor]
    model: Json = None
    """What they were made for, see `model_tag`; None where that is not known."""
    residual_norms: Mapping[int, float] = field(default_factory=dict)
    """Mean norm of the model's residual stream after these blocks; needed for relative scales."""

    def __post_init__(self) -> None:
        vectors = {int(layer): vector.detach().float().cpu() for layer, vector in sorted(self.vectors.items())}
        object.__setattr__(self, "vectors", vectors)
        widths = {tuple(vector.shape) for vector in vectors.values()}
        if not vectors or len(widths) != 1 or len(next(iter(widths))) != 1:
            raise InvalidInput(f"steering vectors must be vectors of one width, got shapes {sorted(widths)}")
        if bad := [layer for layer, vector in vectors.items() if not torch.isfinite(vector).all()]:
            raise InvalidInput(f"the steering vectors of layers {bad} hold NaN or infinity")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a vector, ascending."""
        return tuple(self.vectors)

    @property
    def d_model(self) -> int:
        """Width of every vector."""
        return len(next(iter(self.vectors.values())))

    @cached_property
    def digest(self) -> str:
        """sha256 over layers and bytes of the vectors; who made them, and for what, is not in it."""
        total = sha256()
        for layer, vector in self.vectors.items():
            total.update(f"{layer} {len(vector)}\n".encode())
            total.update(vector.contiguous().numpy().tobytes())
        return total.hexdigest()

    def scaled(self, scale: float, relative: bool = False) -> dict[int, Tensor]:
        """Layer to scale · v, or relative to the residual norm: scale · mean‖h_l‖ · v / ‖v‖. Raises InvalidInput."""
        if not relative:
            return {layer: scale * vector for layer, vector in self.vectors.items()}
        if missing := [layer for layer in self.vectors if layer not in self.residual_norms]:
            raise InvalidInput(f"a relative scale needs residual norms, which are not known for layers {missing}")
        return {
            layer: scale * self.residual_norms[layer] * vector / vector.norm().clamp_min(1e-30)
            for layer, vector in self.vectors.items()
        }

    def only(self, *layers: int) -> SteeringVectors:
        """Of some layers. Raises InvalidInput for a layer without a vector."""
        if missing := [layer for layer in layers if layer not in self.vectors]:
            raise InvalidInput(f"no steering vector for layers {missing}; there are some for {list(self.layers)}")
        return replace(self, vectors={layer: self.vectors[layer] for layer in layers})

    def check(self, model: nn.Module) -> None:
        """Raises InvalidInput when `model` has another width or fewer layers."""
        blocks, width = len(decoder_blocks(model)), _width(model)
        if width is not None and width != self.d_model:
            raise InvalidInput(
                f"these steering vectors are {self.d_model} wide, the residual stream of this model {width}: "
                "they were made for another model"
            )
        if self.layers[-1] >= blocks:
            raise InvalidInput(f"there is a steering vector for layer {self.layers[-1]}, the model has {blocks} blocks")

    def save(self, path: Path) -> None:
        """Replaces a safetensors file atomically."""
        header = {
            "format": FORMAT,
            "schema": SCHEMA,
            "model": canonical(self.model),
            "layers": json.dumps(self.layers),
            "residual_norms": json.dumps({str(layer): norm for layer, norm in self.residual_norms.items()}),
            "sha256": self.digest,
        }
        write_bytes(path, save({_name(layer): v.contiguous() for layer, v in self.vectors.items()}, header))

    @classmethod
    def load(cls, path: Path) -> SteeringVectors:
        """The vectors in a file written by `save`. Raises RefusedFile when it is anything else or damaged."""
        header, tensors = _read(path)
        if header.get("format") != FORMAT or header.get("schema") != SCHEMA:
            raise RefusedFile(f"{path.name} holds no steering vectors of latentbench (format {header.get('format')!r})")
        try:
            layers = json.loads(header["layers"])
            norms = {int(layer): float(norm) for layer, norm in json.loads(header["residual_norms"]).items()}
            made = cls({layer: tensors[_name(layer)] for layer in layers}, json.loads(header["model"]), norms)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, InvalidInput) as error:
            raise RefusedFile(f"{path.name}: its header and its tensors do not fit together: {error}") from error
        if made.digest != header.get("sha256") or len(tensors) != len(layers):
            raise RefusedFile(f"{path.name} is damaged: its vectors are not those its header was written for")
        return made

    def made_for(self, tag: Json, where: str) -> SteeringVectors:
        """Itself. Raises RefusedFile when it is known to be of another model or revision than `tag`."""
        if self.model is not None and self.model != tag:
            raise RefusedFile(
                f"{where}: these steering vectors were made for another model or revision: "
                f"{canonical(self.model)[:160]} instead of {canonical(tag)[:160]}"
            )
        return self


def model_tag(identity: Json) -> Json:
    """What of a model adapter's identity a vector is bound to: everything but the data type it runs in."""
    return {key: value for key, value in identity.items() if key != "dtype"} if isinstance(identity, dict) else identity


def _name(layer: int) -> str:
    return f"layer.{layer}"


def _width(model: Any) -> int | None:
    """Width of the residual stream, where the configuration says it."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    width = getattr(text, "hidden_size", None)
    return width if isinstance(width, int) else None


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with foreign(f"{path.name} cannot be read as safetensors"), safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
