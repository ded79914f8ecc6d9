"""Steering vectors of others: repeng's GGUF control vectors and lm-eval's `.pt` files, read without unpickling.

Both number layers as latentbench does: the vector of layer l is added to the output of decoder block l.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentbench.border import foreign
from latentbench.errors import InvalidInput, RefusedFile
from latentbench.steering.gguf_header import check_header
from latentbench.steering.vectors import SteeringVectors
from latentbench.store.files import write_bytes
from latentbench.torch_files import is_held, read_archive

_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d+)")
_HOOKPOINT = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")
_LARGEST = 1 << 30


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
        check_header(path)
        reader = GGUFReader(path)
        kind = reader.get_field("general.architecture")
        if kind is None or kind.contents() != _ARCHITECTURE:
            raise RefusedFile(f"{path.name} is a GGUF file, but no control vector")
        vectors = {}
        for tensor in reader.tensors:
            name = _DIRECTION.fullmatch(tensor.name)
            if name is None or tensor.tensor_type != GGMLQuantizationType.F32:
                raise RefusedFile(f"{path.name}: {tensor.name} is no direction in 32-bit floating point")
            vectors[int(name[1])] = torch.tensor(tensor.data.reshape(-1))
    return _vectors(vectors, path)


def write_gguf(vectors: SteeringVectors, path: Path, model_hint: str = "unknown") -> None:
    """Replaces a GGUF control vector that repeng reads; `model_hint` is the architecture's name.

    llama.cpp reads it too unless layer 0 is among its layers: it knows no `direction.0` and refuses the whole file.
    """
    from gguf import GGUFWriter

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
    if not is_held(vector):
        raise RefusedFile(f"{where}: {hookpoint} stands for more numbers than the file holds")
    return int(name[1]), vector.detach().float().reshape(-1) * float(coefficient)
