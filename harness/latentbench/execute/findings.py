"""What a study found, as content of the store and back."""

from __future__ import annotations

import numpy as np
import torch

from latentbench.lab import Content
from latentbench.metrics.study import Findings
from latentbench.metrics.units import Units
from latentbench.record import MetricValue

_STATISTICS, _TENSORS, _UNITS = "statistics/", "tensors/", "units/"


def to_content(found: Findings) -> Content:
    """Statistics are kept as float64 tensors named `statistics/<domain>/<name>`, units only where something repeats."""
    statistics = {
        f"{_STATISTICS}{domain}/{name}": torch.from_numpy(np.array(values, dtype=np.float64))
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


def from_content(content: Content) -> Findings:
    """The inverse of `to_content`."""
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
