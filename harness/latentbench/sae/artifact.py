"""Native SAEs on disk: `sae.safetensors` (weights), `sae.json` (options, shape, settings), `training.json` (curve).

No pickle. Whatever is malformed, incomplete, of another shape or built on another base is refused with a reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentbench.core.border import foreign
from latentbench.core.errors import RefusedFile
from latentbench.core.plugins import plugins
from latentbench.sae.autoencoder import SparseAutoencoder, weights_digest
from latentbench.sae.options import NATIVE, Variant

WEIGHTS, HEADER, TRAINING = "sae.safetensors", "sae.json", "training.json"
SCHEMA = 1


def save(
    sae: SparseAutoencoder,
    options: Variant,
    d_in: int,
    folder: Path,
    training: dict[str, Any] | None = None,
    bases: tuple[SparseAutoencoder, ...] = (),
) -> None:
    """Writes `sae` to `folder`; `training` is the trainer's `training_record()`; `bases` are referred to by digest."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().contiguous().cpu().clone() for name, t in sae.state_dict().items()}, folder / WEIGHTS)
    header = {
        "schema": SCHEMA,
        "d_in": d_in,
        "options": options.plain(),
        "settings": sae.settings(),
        "bases": [weights_digest(base) for base in bases],
    }
    _write(folder / HEADER, header)
    if training is not None:
        _write(folder / TRAINING, training)


def load(folder: Path, bases: tuple[SparseAutoencoder, ...] = ()) -> SparseAutoencoder:
    """The SAE in `folder`, in evaluation mode, on top of the same `bases` it was made from.

    Raises RefusedFile when a file is missing, malformed, of other shapes or types than its header promises, or when
    `bases` are not those it was trained on.
    """
    header = _read(folder / HEADER)
    options = _options(header, folder)
    if header.get("bases", []) != [weights_digest(base) for base in bases]:
        raise RefusedFile(f"{folder}: this SAE was made on top of other base SAEs than the {len(bases)} given")
    sae = options.build(header["d_in"], torch.Generator().manual_seed(0), bases)
    _fill(sae, _weights(folder / WEIGHTS), folder)
    return sae.eval().requires_grad_(False)


def load_training(folder: Path) -> dict[str, Any]:
    """The training record saved beside an SAE. Raises RefusedFile when it is missing or malformed."""
    return _read(folder / TRAINING)


def _options(header: dict[str, Any], folder: Path) -> Variant:
    place, choices = folder / HEADER, {**NATIVE, **plugins("variants")}
    if header.get("schema") != SCHEMA:
        raise RefusedFile(f"{place}: schema {header.get('schema')!r} is not the supported {SCHEMA}")
    if not isinstance(header.get("d_in"), int) or header["d_in"] < 1:
        raise RefusedFile(f"{place}: d_in must be a positive integer, not {header.get('d_in')!r}")
    options = header.get("options")
    if not isinstance(options, dict) or str(options.get("variant")) not in choices:
        raise RefusedFile(f"{place}: options do not name one of the known variants {sorted(choices)}")
    try:
        made: Variant = choices[options["variant"]].model_validate(options)  # type: ignore[assignment]
    except ValidationError as error:
        raise RefusedFile(f"{place}: invalid options: {error}") from error
    return made


def _weights(path: Path) -> dict[str, Tensor]:
    with foreign(f"{path}: cannot be read as safetensors"):
        return load_file(path)


def _fill(sae: SparseAutoencoder, weights: dict[str, Tensor], folder: Path) -> None:
    expected = sae.state_dict()
    if weights.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        raise RefusedFile(f"{folder / WEIGHTS}: missing tensors {missing}, unexpected tensors {extra}")
    for name, tensor in weights.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise RefusedFile(
                f"{folder / WEIGHTS}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"the options ask for {wanted.dtype} {list(wanted.shape)}"
            )
    sae.load_state_dict(weights)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedFile(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise RefusedFile(f"{path}: must hold a JSON object")
    return content
