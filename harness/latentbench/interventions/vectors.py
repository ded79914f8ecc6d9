"""Steering vectors: one vector per layer, of one model, and the files they are kept in.

A vector of layer l is added to a hidden state of decoder block l, its output where nothing else is said: the residual stream
after the block. latentbench's own safetensors file says which model they are of. repeng's GGUF control vectors and lm-eval's
`.pt` files, which are read without unpickling, number layers the same way.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks
from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.gguf_header import FEW, read_gguf_header
from latentbench.core.hashing import canonical
from latentbench.core.sites import OUTPUT, Place
from latentbench.core.spec_model import Json
from latentbench.core.torch_files import is_held, read_archive
from latentbench.store.files import write_bytes

FORMAT, SCHEMA = "latentbench.steering", "1"

_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d+)")
_HOOKPOINT = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")
_LARGEST = 1 << 30
"""Bytes; 80 vectors that are 8192 wide take 2.5 MiB."""


@dataclass(frozen=True)
class SteeringVectors:
    """Vectors [d_model] float32 on the CPU, by layer."""

    vectors: Mapping[int, Tensor]
    model: Json = None
    """What they were made for, see `model_tag`; None where that is not known."""
    residual_norms: Mapping[int, float] = field(default_factory=dict)
    """Mean norm of the hidden state that they are added to; needed for relative scales."""
    place: Place = OUTPUT
    """Which hidden state of their blocks that is."""

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
        """sha256 over layers, bytes and place of the vectors; who made them, and for what, is not in it.

        Answers are cached by it: the same vectors from a training and from a file are the same intervention.
        """
        total = sha256(b"" if self.place == OUTPUT else f"{self.place}\n".encode())
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
        """The vectors of some layers alone. Raises InvalidInput for a layer without a vector."""
        if missing := [layer for layer in layers if layer not in self.vectors]:
            raise InvalidInput(f"no steering vector for layers {missing}; there are some for {list(self.layers)}")
        return replace(self, vectors={layer: self.vectors[layer] for layer in layers})

    def check(self, model: nn.Module) -> None:
        """Raises InvalidInput when `model` has another width or fewer layers."""
        blocks, width = len(decoder_blocks(model)), residual_width(model)
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
        header |= {} if self.place == OUTPUT else {"place": self.place}
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
            vectors = {layer: tensors[_name(layer)] for layer in layers}
            made = cls(vectors, json.loads(header["model"]), norms, _place(header.get("place", OUTPUT)))
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, InvalidInput) as error:
            raise RefusedFile(f"{path.name}: its header and its tensors do not fit together: {error}") from error
        if made.digest != header.get("sha256") or len(tensors) != len(layers):
            raise RefusedFile(f"{path.name} is damaged: its vectors are not those its header was written for")
        return made

    def made_for(self, tag: Json, where: str) -> SteeringVectors:
        """Gives itself back. Raises RefusedFile when it is known to be of another model or revision than `tag`."""
        if self.model is not None and self.model != tag:
            raise RefusedFile(
                f"{where}: these steering vectors were made for another model or revision: "
                f"{canonical(self.model)[:160]} instead of {canonical(tag)[:160]}"
            )
        return self


def model_tag(identity: Json) -> Json:
    """What of a model adapter's identity a vector is bound to: everything but the data type it runs in."""
    return {key: value for key, value in identity.items() if key != "dtype"} if isinstance(identity, dict) else identity


def residual_width(model: Any) -> int | None:
    """Width of a model's residual stream, where its configuration says it."""
    config: Any = getattr(model, "config", None)
    # A model that also sees or hears keeps the sizes of its language part in a configuration of its own.
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    width = getattr(text, "hidden_size", None)
    return width if isinstance(width, int) else None


def read_vectors(path: Path) -> SteeringVectors:
    """Vectors from a .safetensors (latentbench), .gguf (repeng) or .pt (lm-eval) file. Raises RefusedFile."""
    readers = {".safetensors": SteeringVectors.load, ".gguf": read_gguf, ".pt": read_lm_eval}
    if path.suffix not in readers:
        raise RefusedFile(f"{path.name}: steering vectors are read from {', '.join(readers)} files")
    if path.stat().st_size > _LARGEST:
        raise RefusedFile(f"{path.name} is larger than steering vectors can be")
    return readers[path.suffix](path)


def write_vectors(vectors: SteeringVectors, path: Path, hookpoint: str = "layers") -> None:
    """Replaces a file of the format that its ending names. `hookpoint`: the blocks' name below the base model (.pt)."""
    if path.suffix in (".gguf", ".pt") and vectors.place != OUTPUT:
        raise InvalidInput(
            f"{path.name}: this format knows outputs of blocks only, not {vectors.place}: use .safetensors"
        )
    if path.suffix == ".safetensors":
        vectors.save(path)
    elif path.suffix == ".gguf":
        write_gguf(vectors, path)
    elif path.suffix == ".pt":
        write_lm_eval(vectors, path, hookpoint)
    else:
        raise InvalidInput(f"{path.name}: steering vectors are written as .safetensors, .gguf or .pt")


def read_gguf(path: Path) -> SteeringVectors:
    """A control vector as repeng and llama.cpp write it: F32 tensors `direction.<layer>`. Raises RefusedFile."""
    from gguf import GGMLQuantizationType, GGUFReader

    with foreign(f"{path.name} is no readable GGUF control vector"):
        read_gguf_header([path], FEW)
        reader = GGUFReader(path)
        kind = reader.get_field("general.architecture")
        if kind is None or kind.contents() != _ARCHITECTURE:
            raise RefusedFile(f"{path.name} is a GGUF file, but no control vector")
        vectors = {}
        for tensor in reader.tensors:
            name = _DIRECTION.fullmatch(tensor.name)
            if name is None or tensor.tensor_type != GGMLQuantizationType.F32:
                raise RefusedFile(f"{path.name}: {tensor.name} is no direction in 32-bit floating point")
            vectors[int(name[1])] = torch.tensor(tensor.data.reshape(-1))  # a copy: the reader's arrays map the file
    return _vectors(vectors, path)


def write_gguf(vectors: SteeringVectors, path: Path, model_hint: str = "unknown") -> None:
    """Replaces a GGUF control vector that repeng reads; `model_hint` is the architecture's name.

    llama.cpp reads it too unless layer 0 is among its layers: it knows no `direction.0` and refuses the whole file.
    """
    from gguf import GGUFWriter

    # GGUFWriter writes to paths only, and piece by piece; `write_bytes` then replaces `path` at once or not at all.
    handle, draft = tempfile.mkstemp(suffix=".gguf")
    os.close(handle)
    try:
        writer = GGUFWriter(draft, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vectors.layers))
        for layer, vector in vectors.vectors.items():
            writer.add_tensor(f"direction.{layer}", vector.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_bytes(path, Path(draft).read_bytes())
    finally:
        os.unlink(draft)


def read_lm_eval(path: Path) -> SteeringVectors:
    """lm-eval's steering file: hook point to `{steering_vector, steering_coefficient, action, …}`, coefficients applied.

    Raises RefusedFile for whatever torch's restricted reader does not take, and for what is not a vector added to the
    residual stream (clamping, single heads, a bias).
    """
    stored = read_archive(path)
    if not isinstance(stored, Mapping) or not stored:
        raise RefusedFile(f"{path.name} holds no map from hook points to steering vectors")
    vectors: dict[int, Tensor] = {}
    for hookpoint, entry in stored.items():
        layer, vector = _lm_eval_entry(str(hookpoint), entry, path.name)
        if layer in vectors:
            raise RefusedFile(f"{path.name}: two steering vectors for layer {layer}")
        vectors[layer] = vector
    return _vectors(vectors, path)


def write_lm_eval(vectors: SteeringVectors, path: Path, hookpoint: str = "layers") -> None:
    """Replaces a file for lm-eval's `steered` model; `hookpoint` names the blocks below the base model (`h` for GPT-2)."""
    entries = {
        f"{hookpoint}.{layer}": {
            "steering_vector": vector.clone(),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, vector in vectors.vectors.items()
    }
    file = io.BytesIO()
    torch.save(entries, file)
    write_bytes(path, file.getvalue())


def _place(stated: str) -> Place:
    """Raises ValueError for what is no place."""
    known: tuple[Place, ...] = get_args(Place)
    if found := [place for place in known if place == stated]:
        return found[0]
    raise ValueError(f"there is no place {stated!r}")


def _name(layer: int) -> str:
    return f"layer.{layer}"


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with foreign(f"{path.name} cannot be read as safetensors"), safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _vectors(vectors: Mapping[int, Tensor], path: Path) -> SteeringVectors:
    """Raises RefusedFile that names the file where these are no vectors of one model."""
    try:
        return SteeringVectors(vectors)
    except InvalidInput as error:
        raise RefusedFile(f"{path.name}: {error}") from error


def _lm_eval_entry(hookpoint: str, entry: Any, where: str) -> tuple[int, Tensor]:
    name = _HOOKPOINT.fullmatch(hookpoint)
    if name is None:
        raise RefusedFile(f"{where}: the hook point {hookpoint!r} is no decoder block, such as layers.3")
    if not isinstance(entry, Mapping) or not isinstance(vector := entry.get("steering_vector"), Tensor):
        raise RefusedFile(f"{where}: {hookpoint} holds no steering_vector")
    if entry.get("action", "add") != "add" or entry.get("bias") is not None or entry.get("head_index") is not None:
        raise RefusedFile(f"{where}: {hookpoint}: only vectors that are added to the residual stream are read")
    coefficient = entry.get("steering_coefficient", 1.0)
    if not isinstance(coefficient, int | float) or not vector.is_floating_point():
        raise RefusedFile(f"{where}: {hookpoint} holds no floating-point vector with a number as coefficient")
    # A tensor of stride 0 stands for any number of elements in a few bytes, and would be written out in full below.
    if not is_held(vector):
        raise RefusedFile(f"{where}: {hookpoint} stands for more numbers than the file holds")
    return int(name[1]), vector.detach().float().reshape(-1) * float(coefficient)
