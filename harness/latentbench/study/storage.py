"""What a stage leaves behind as files of the store, and what a study found as such content; both ways.

Tensors of findings are named `statistics/<domain>/<statistic>`, `units/<domain>` and `tensors/<name>`; the rest is JSON
beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentbench.core.errors import CellFailed, DamagedArtifact
from latentbench.core.spec_model import Json
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.statistics.units import Units
from latentbench.store.store import Store
from latentbench.study.context import Content
from latentbench.study.study import Findings

CONTENT, META = "content.safetensors", "content.json"
_STATISTICS, _TENSORS, _UNITS = "statistics/", "tensors/", "units/"


def stored_content(store: Store, kind: str, key: str) -> Content | None:
    """Content by its key; None when it is not in the store, or was damaged there and has now been put in quarantine.

    Raises DamagedArtifact for files that are what was once written and yet cannot be read as content.
    """
    artifact = store.get(kind, key)
    return None if artifact is None else Content(*read_content(artifact.folder))


def write_content(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> None:
    """Tensors and metadata as files of a folder. Raises ValueError for numbers that JSON does not have."""
    # safetensors refuses views that are not contiguous; NaN in JSON would be read by Python alone.
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / CONTENT)
    (folder / META).write_text(json.dumps(dict(meta), allow_nan=False), "utf-8")


def read_content(folder: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """The inverse of `write_content`. Raises DamagedArtifact."""
    try:
        return load_file(folder / CONTENT), json.loads((folder / META).read_text("utf-8"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DamagedArtifact(f"{folder} cannot be read: {error}") from error


def to_content(found: Findings) -> Content:
    """Findings for the store: statistics as float64, units only where something repeats.

    Raises CellFailed for statistics that are not one number per unit: no record could vouch for them.
    """
    statistics = {
        f"{_STATISTICS}{domain}/{name}": torch.from_numpy(_per_unit(f"{domain}/{name}", values))
        for domain, named in found.statistics.items()
        for name, values in named.items()
    }
    tensors = {f"{_TENSORS}{name}": tensor for name, tensor in found.tensors.items()}
    units = {
        f"{_UNITS}{domain}": torch.from_numpy(unit.numbers) for domain, unit in found.units.items() if unit.repeats
    }
    meta = {
        "values": [value.plain() for value in found.values],
        "details": dict(found.details),
        "warnings": list(found.warnings),
        "reasons": dict(found.reasons),
    }
    return Content(statistics | tensors | units, meta)


def _per_unit(name: str, values: object) -> Array:
    try:
        made = np.array(values, dtype=np.float64)  # a copy: safetensors refuses two names for the same memory
    except (TypeError, ValueError) as error:
        raise CellFailed(f"a study's statistics {name} are no numbers: {error}") from None
    if made.ndim != 1:
        raise CellFailed(f"a study's statistics {name} have the shape {made.shape}; one number per unit is expected")
    return made


def from_content(content: Content) -> Findings:
    """The inverse of `to_content`; findings stored before there were `reasons` have none."""
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in content.tensors.items():
        if key.startswith(_STATISTICS):
            domain, _, name = key.removeprefix(_STATISTICS).partition("/")
            statistics.setdefault(domain, {})[name] = tensor.numpy()
    return Findings(
        statistics=statistics,
        values=tuple(MetricValue.model_validate(value) for value in content.meta["values"]),
        details=content.meta["details"],
        tensors={k.removeprefix(_TENSORS): t for k, t in content.tensors.items() if k.startswith(_TENSORS)},
        warnings=tuple(content.meta["warnings"]),
        reasons=content.meta.get("reasons", {}),
        units={k.removeprefix(_UNITS): Units(t.numpy()) for k, t in content.tensors.items() if k.startswith(_UNITS)},
    )
