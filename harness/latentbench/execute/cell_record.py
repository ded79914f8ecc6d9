"""From measured stages to the record of a cell, with the machine and the code that made it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentbench.core.hashing import digest
from latentbench.core.resources import high_water
from latentbench.core.token_rule import MUCH, share_left_out
from latentbench.execute.job import Job, JobCell
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import metric_values
from latentbench.plan.stages import CellStages, comparability, stage_keys
from latentbench.reconstruction.left_out import EVERY
from latentbench.records.record import (
    ArtifactRef,
    Checkout,
    Comparability,
    Environment,
    Failure,
    Record,
    RunCost,
    Status,
)
from latentbench.spec.experiment import Experiment
from latentbench.statistics.arrays import Statistics
from latentbench.store.files import Arrays
from latentbench.store.store import Store
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.execute.measurement_stage import DomainMeasurement

_PACKAGES = ("latentbench", "torch", "transformers", "sae-lens", "numpy", "safetensors", "datasets", "numba", "triton")


def build_record(
    job: Job,
    item: JobCell,
    stages: CellStages | None,
    *,
    status: Status = "ok",
    error: Failure | None = None,
    metrics: list[MetricValue] | None = None,
    artifacts: tuple[ArtifactRef, ...] = (),
    warnings: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    cost: RunCost | None = None,
) -> Record:
    """The record of a cell, with the machine and the code that it is written by. `stages` are None where they are not
    known."""
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
        notes=notes,
        environment=environment(job.roots.project, job.device, job.threads, job.devices),
        cost=cost or RunCost(peak_memory_bytes=peak_memory_bytes()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def numbers_of(
    item: JobCell, measured: Mapping[str, DomainMeasurement], findings: Mapping[str, Findings]
) -> list[MetricValue]:
    """Every number of the cell's metrics on every domain."""
    experiment = item.cell.experiment
    # By domain, and below it by the name of the statistic or by budget.
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


def beyond_training(values: Iterable[MetricValue], trained_k: int | None) -> Iterator[MetricValue]:
    """The numbers, those of a budget above the active latents of training with what these were."""
    for value in values:
        beyond = trained_k is not None and value.budget is not None and value.budget > trained_k
        yield value.model_copy(update={"trained_k": trained_k}) if beyond else value


FEW_STEPS = 500
"""Fewer steps of training than this are said beside a row: its numbers are those of a run that has hardly begun."""
FALLING = 0.01
"""A loss that the last tenth of training made smaller by a larger share is still falling. Where it has settled, on the
pocket model, it is 0 to 0.7 %."""


def training_warnings(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the training records of a cell's SAEs say of how far each has come."""
    few = [steps for record in records if (steps := record.get("steps", FEW_STEPS)) < FEW_STEPS]
    if few:
        span = f"{min(few)}" if min(few) == max(few) else f"{min(few)} to {max(few)}"
        yield f"{_which(few, records)} trained for {span} steps, fewer than {FEW_STEPS}: more may change the order of rows"
    yield from _left_out_of_training(records)
    falling = [fall for record in records if (fall := _fall(record.get("curve", {}).get("normalised", ()))) > FALLING]
    if falling:
        most = f"{'up to ' if len(falling) > 1 else ''}{max(falling):.1%}"
        yield f"{_which(falling, records)} still learning when training ended: the loss fell by {most} in the last tenth"


def _left_out_of_training(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    # What was trained before there was a rule says nothing of it.
    told = (counts for record in records if (counts := record.get("left_out")))
    shares = [share for counts in told if (share := share_left_out(counts)) > MUCH]
    if shares:
        most = f"{'up to ' if len(shares) > 1 else ''}{max(shares):.1%}"
        yield f"{_which(shares, records)} trained without {most} of the tokens, massive ones or those that `leave_out` names"


def _which(those: Sequence[object], all_of: Sequence[object]) -> str:
    return "the SAE was" if len(all_of) == 1 else f"{len(those)} of {len(all_of)} SAEs were"


def _fall(curve: Sequence[float]) -> float:
    """By what share the last tenth of a curve is below the tenth before; 0 where that is less than two standard errors."""
    tenth = len(curve) // 10
    if tenth < 2:
        return 0.0
    before, last = np.asarray(curve[-2 * tenth : -tenth]), np.asarray(curve[-tenth:])
    error = float(np.sqrt((before.var(ddof=1) + last.var(ddof=1)) / tenth))
    fall = float(before.mean() - last.mean())
    return fall / float(before.mean()) if fall > 2 * error else 0.0


def sidecar_of(measured: Mapping[str, DomainMeasurement], findings: Mapping[str, Findings]) -> Arrays:
    """Per-unit statistics as they are kept beside the record: `<domain>/<statistic>`, float64 [units]."""
    statistics = [(name, domain.tokens.units.summed(_statistics(domain))) for name, domain in measured.items()]
    statistics += [(name, named) for found in findings.values() for name, named in found.summed().items()]
    return {
        f"{name}/{statistic}": np.asarray(values, dtype=np.float64)
        for name, named in statistics
        for statistic, values in named.items()
    }


def artifacts_of(store: Store, stages: CellStages) -> tuple[ArtifactRef, ...]:
    """What the record refers to in the store, which no eviction deletes while it is referred to."""
    kept = [(stage.kind, stage.key) for stage in stages.all() if stage.stored and store.has(stage.kind, stage.key)]
    sizes = [sum(f.stat().st_size for f in store.folder(kind, key).iterdir()) for kind, key in kept]
    return tuple(ArtifactRef(kind=kind, key=key, bytes=size) for (kind, key), size in zip(kept, sizes, strict=True))


def environment(project: Path, device: str, threads: int, devices: int = 1) -> Environment:
    """Versions, processor, device, how many of them train one SAE, threads of each, and the state of the code.

    What may explain a difference in rounding or speed between two records of one cell; none of it is in any key.
    """
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        device=device,
        devices=devices,
        threads=threads,
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        git=git_checkout(project),
    )


def peak_memory_bytes() -> int:
    """Largest resident set so far, of this process or of one that it started: SAEs may be trained in those."""
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Of children only those that have been waited for count. The unit is KiB, on macOS bytes.
    return max(high_water(), started if sys.platform == "darwin" else started * 1024)


def _of_sae(experiment: Experiment, measured: Mapping[str, DomainMeasurement]) -> Iterator[MetricValue]:
    """Numbers that belong to the SAE and to no domain, such as its cost; L0 is that of the first domain."""
    first = next(iter(measured.values()), None)
    if first is None:
        return
    d_in, width = len(first.baseline.mean), len(first.measurements[None].firing)
    l0 = float(first.measurements[None].statistics["l0"].sum() / first.baseline.statistics["tokens"].sum())
    for metric in experiment.metrics:
        yield from metric.of_sae(experiment.sae, d_in, width, l0)


def _statistics(domain: DomainMeasurement) -> Statistics:
    """Statistics of the model alone, of every budget and of every token together, told apart by their names."""
    merged = dict(domain.baseline.statistics)
    for measurement in domain.measurements.values():
        merged |= measurement.statistics
    if domain.every:
        merged |= {EVERY + name: values for name, values in _statistics(domain.every).items()}
    return merged


@cache
def processor_name() -> str:
    """What the processor calls itself, and how many cores there are."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores"


@cache
def git_checkout(project: Path) -> Checkout | None:
    """Commit of the checkout and whether files differ from it; None outside of one."""
    commit = _run(project, "rev-parse", "HEAD")
    if commit is None:
        return None
    # Only what computes: pages and results do not change a number.
    changed = _run(project, "status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)*.md")
    return Checkout(commit=commit, dirty=bool(changed))


def _run(project: Path, *arguments: str) -> str | None:
    # The configuration of a checkout may name a program that watches its files, which git would start.
    command = ["git", "-C", str(project), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
