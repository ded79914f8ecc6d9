"""Small files written by others, read bounded and without torch: JSON objects and the tables of safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

from latentbench.core.errors import RefusedFile

_LARGEST = 1 << 24


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of every tensor by its name. Raises RefusedFile."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST:
                raise RefusedFile(f"{path.name} is not a safetensors file")
            table = json.loads(file.read(length))
        found = {name: tensor["shape"] for name, tensor in table.items() if name != "__metadata__"}
        return {name: [int(size) for size in shape] for name, shape in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RefusedFile(f"{path.name} is not a safetensors file: {error}") from None
