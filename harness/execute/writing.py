"""From measured stages to the record of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from harness.canonical import digest
from harness.execute.environment import environment, peak_memory_bytes
from harness.execute.job import Job, JobCell
from harness.metrics.base import Array
from harness.metrics.values import metric_values
from harness.plan.stages import CellStages, comparability, stage_keys
from harness.record import ArtifactRef, Comparability, Cost, Failure, MetricValue, Record, Status
from harness.store.files import Arrays
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.execute.measuring import Measured


def record_of(
    job: Job,
    item: JobCell,
    stages: CellStages | None,
    *,
    status: Status = "ok",
    error: Failure | None = None,
    metrics: list[MetricValue] | None = None,
    artifacts: tuple[ArtifactRef, ...] = (),
    warnings: tuple[str, ...] = (),
    cost: Cost | None = None,
) -> Record:
    """The record of a cell."""
    cell = item.cell
    agreed = {}
    for name, domain in (stages.domains if stages else {}).items():
        facts = comparability(cell, domain)
        agreed[name] = Comparability(key=digest("comparability", facts), fields=facts)
    return Record(
        cell=item.key,
        spec=cell.origin,
        label=cell.label,
        resolved=cell.experiment.plain(),
        seed=cell.seed,
        status=status,
        error=error,
        keys=stage_keys(stages) if stages else {},
        comparability=agreed,
        metrics=tuple(metrics or ()),
        artifacts=artifacts,
        warnings=warnings,
        environment=environment(job.roots.project, job.device, job.threads),
        cost=cost or Cost(peak_memory_bytes=peak_memory_bytes()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def numbers_of(item: JobCell, measured: Mapping[str, Measured]) -> list[MetricValue]:
    """Every number of the cell's metrics on every domain."""
    statistics = {name: dict(_statistics(domain)) for name, domain in measured.items()}
    firing = {name: {b: m.firing for b, m in domain.measurements.items()} for name, domain in measured.items()}
    experiment = item.cell.experiment
    numbers = metric_values(experiment.metrics, statistics, firing)
    first = next(iter(measured.values()))
    d_in, width = len(first.baseline.mean), len(first.measurements[None].firing)
    l0 = float(first.measurements[None].statistics["l0"].sum() / first.baseline.statistics["tokens"].sum())
    of_sae = [value for metric in experiment.metrics for value in metric.of_sae(experiment.sae, d_in, width, l0)]
    return [*of_sae, *numbers]


def sidecar_of(measured: Mapping[str, Measured]) -> Arrays:
    """Per-document statistics as they are kept beside the record: `<domain>/<statistic>`, float64 [documents]."""
    return {
        f"{name}/{statistic}": np.asarray(values, dtype=np.float64)
        for name, domain in measured.items()
        for statistic, values in _statistics(domain).items()
    }


def artifacts_of(store: Store, stages: CellStages) -> tuple[ArtifactRef, ...]:
    """What the record refers to in the store."""
    kept = [(stage.kind, stage.key) for stage in stages.all() if stage.stored and store.has(stage.kind, stage.key)]
    sizes = [sum(f.stat().st_size for f in store.folder(kind, key).iterdir()) for kind, key in kept]
    return tuple(ArtifactRef(kind=kind, key=key, bytes=size) for (kind, key), size in zip(kept, sizes, strict=True))


def _statistics(domain: Measured) -> dict[str, Array]:
    merged = dict(domain.baseline.statistics)
    for measurement in domain.measurements.values():
        merged |= measurement.statistics
    return merged
