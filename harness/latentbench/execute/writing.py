"""From measured stages to the record of a cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from latentbench.canonical import digest
from latentbench.execute.environment import environment, peak_memory_bytes
from latentbench.execute.job import Job, JobCell
from latentbench.metrics.base import Statistics
from latentbench.metrics.study import Findings
from latentbench.metrics.values import metric_values
from latentbench.plan.stage import CellStages
from latentbench.plan.stages import comparability, stage_keys
from latentbench.record import ArtifactRef, Comparability, Cost, Failure, MetricValue, Record, Status
from latentbench.spec.experiment import Experiment
from latentbench.store.files import Arrays
from latentbench.store.store import Store

if TYPE_CHECKING:
    from latentbench.execute.measuring import Measured


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
    agreed = {
        name: Comparability(key=digest("comparability", facts), fields=facts)
        for name, facts in (comparability(cell, stages, job.roots) if stages else {}).items()
    }
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
        environment=environment(job.roots.project, job.device, job.threads, job.devices),
        cost=cost or Cost(peak_memory_bytes=peak_memory_bytes()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def numbers_of(item: JobCell, measured: Mapping[str, Measured], findings: Mapping[str, Findings]) -> list[MetricValue]:
    """Every number of the cell's metrics on every domain."""
    experiment = item.cell.experiment
    statistics = {name: dict(_statistics(domain)) for name, domain in measured.items()}
    firing = {name: {b: m.firing for b, m in domain.measurements.items()} for name, domain in measured.items()}
    units = {name: domain.tokens.units for name, domain in measured.items()}
    numbers = [
        *_of_sae(experiment, measured),
        *metric_values(experiment.shared_metrics, statistics, firing, units=units),
    ]
    for study in experiment.studies:
        found = findings[study.label]
        numbers += found.values
        numbers += metric_values((study,), found.statistics, reasons=found.reasons, units=found.units)
    return numbers


def _of_sae(experiment: Experiment, measured: Mapping[str, Measured]) -> Iterator[MetricValue]:
    first = next(iter(measured.values()), None)
    if first is None:
        return
    d_in, width = len(first.baseline.mean), len(first.measurements[None].firing)
    l0 = float(first.measurements[None].statistics["l0"].sum() / first.baseline.statistics["tokens"].sum())
    for metric in experiment.metrics:
        yield from metric.of_sae(experiment.sae, d_in, width, l0)


def sidecar_of(measured: Mapping[str, Measured], findings: Mapping[str, Findings]) -> Arrays:
    """Per-unit statistics as they are kept beside the record: `<domain>/<statistic>`, float64 [units]."""
    statistics = [(name, domain.tokens.units.summed(_statistics(domain))) for name, domain in measured.items()]
    statistics += [(name, named) for found in findings.values() for name, named in found.summed().items()]
    return {
        f"{name}/{statistic}": np.asarray(values, dtype=np.float64)
        for name, named in statistics
        for statistic, values in named.items()
    }


def artifacts_of(store: Store, stages: CellStages) -> tuple[ArtifactRef, ...]:
    """What the record refers to in the store."""
    kept = [(stage.kind, stage.key) for stage in stages.all() if stage.stored and store.has(stage.kind, stage.key)]
    sizes = [sum(f.stat().st_size for f in store.folder(kind, key).iterdir()) for kind, key in kept]
    return tuple(ArtifactRef(kind=kind, key=key, bytes=size) for (kind, key), size in zip(kept, sizes, strict=True))


def _statistics(domain: Measured) -> Statistics:
    merged = dict(domain.baseline.statistics)
    for measurement in domain.measurements.values():
        merged |= measurement.statistics
    return merged
