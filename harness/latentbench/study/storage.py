"""What a study found, as content of the store and back.

Tensors are named `statistics/<domain>/<statistic>`, `units/<domain>` and `tensors/<name>`; the rest is JSON beside them.
"""

from __future__ import annotations

import numpy as np
import torch

from latentbench.core.errors import CellFailed
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.statistics.units import Units
from latentbench.study.context import Content
from latentbench.study.study import Findings

_STATISTICS, _TENSORS, _UNITS = "statistics/", "tensors/", "units/"


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
