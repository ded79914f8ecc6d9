"""Small files written by others, read bounded and without torch: configurations in JSON, and tables of safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.spec_model import Json

_MAX_CONFIG = 1 << 20
"""Bytes of a configuration; of large models and SAEs they have a few thousand."""
_MAX_TABLE = 1 << 24
"""Bytes of a safetensors file's table; that of a model of 10,000 tensors has about one million."""


def read_json(path: Path) -> Json:
    """A configuration in JSON. Raises NotAvailable where it cannot be opened, RefusedFile where it is too large or no JSON."""
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise RefusedFile(f"{path} is larger than a configuration can be")
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise NotAvailable(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RefusedFile(f"{path} is not JSON: {error}") from None


def config_object(value: Json, where: str) -> dict[str, Json]:
    """`value` if it is a JSON object. Raises RefusedFile."""
    if not isinstance(value, dict):
        raise RefusedFile(f"{where} must hold a JSON object")
    return value


def positive(config: dict[str, Json], key: str, where: str) -> int:
    """A whole number of at least 1. Raises RefusedFile when it is absent or anything else."""
    found = optional_positive(config, key, where)
    if found is None:
        raise RefusedFile(f"{where}: {key} is missing")
    return found


def optional_positive(config: dict[str, Json], key: str, where: str) -> int | None:
    """A whole number of at least 1, or None when it is absent. Raises RefusedFile for anything else."""
    value = config.get(key)
    if value is None:
        return None
    # JSON's true is Python's True, which is an int of value 1.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RefusedFile(f"{where}: {key} must be a whole number of at least 1, not {str(value)[:40]!r}")
    return value


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of every tensor of a safetensors file by its name, read from its table alone. Raises RefusedFile."""
    try:
        with path.open("rb") as file:
            # The format's first eight bytes count those of the table; a hostile file could count to 2^64.
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_TABLE:
                raise RefusedFile(f"{path.name} is not a safetensors file")
            table = json.loads(file.read(length))
        found = {name: tensor["shape"] for name, tensor in table.items() if name != "__metadata__"}
        return {name: [int(size) for size in shape] for name, shape in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RefusedFile(f"{path.name} is not a safetensors file: {error}") from None
