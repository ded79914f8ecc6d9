"""Planning a run and computing what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from harness.errors import InvalidInput
from harness.execute.events import Report
from harness.execute.grouping import groups_of, threads_of
from harness.execute.inline import InlineExecutor
from harness.execute.job import Job, job_cells
from harness.execute.local import LocalExecutor
from harness.plan.plan import Plan, make_plan
from harness.project import Project, load_specs
from harness.results import find_record
from harness.spec.cells import SpecFile
from harness.spec.experiment import Experiment
from harness.store.store import Store


def prepare(project: Project, given: Iterable[str]) -> Plan:
    """The plan for specs with every model pinned to what it is now. Raises SpecError or NotAvailable."""
    specs = [_pinned(spec, project) for spec in load_specs(project, given)]
    return make_plan(specs, Store(project.store), project.results, project.roots)


def compute(plan: Plan, project: Project, executor: str, workers: int | None, device: str, report: Report) -> None:
    """Computes the cells of a plan that have no numbers yet; every one has a record afterwards."""
    if not plan.to_run:
        return
    jobs = jobs_of(plan, project, resolve_device(device), workers)
    if executor == "inline":
        InlineExecutor().run(jobs, report)
    else:
        LocalExecutor(_workers(workers, jobs), project.results / "logs").run(jobs, report)


def jobs_of(plan: Plan, project: Project, device: str, workers: int | None) -> list[Job]:
    """The jobs of a plan: groups of cells, with the threads each may use."""
    processes = workers or max(1, (os.cpu_count() or 2) // threads_of(plan.to_run))
    groups = groups_of(plan.to_run, processes)
    return [
        Job(job_cells(group), project.store, project.results, project.roots, device, threads_of(group))
        for group in groups
    ]


def resolve_device(device: str) -> str:
    """The torch device meant by `auto`, or the one named. Raises InvalidInput when it is not there."""
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = device.partition(":")
    if name != "cuda" or (number and not number.isdigit()):
        raise InvalidInput(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"the device {device!r} is not here; this torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def _workers(workers: int | None, jobs: list[Job]) -> int:
    return workers or max(1, (os.cpu_count() or 2) // max(job.threads for job in jobs))


def _pinned(spec: SpecFile, project: Project) -> SpecFile:
    """The spec with branches of hub models and datasets replaced by the commits they stand for now."""
    done: dict[int, Experiment] = {}  # cells that differ only in their seed share an experiment
    for cell in spec.cells:
        if id(cell.experiment) not in done:
            done[id(cell.experiment)] = _pinned_experiment(cell.experiment, project)
    return replace(spec, cells=tuple(replace(cell, experiment=done[id(cell.experiment)]) for cell in spec.cells))


def _pinned_experiment(experiment: Experiment, project: Project) -> Experiment:
    roots, data = project.roots, experiment.dataset
    texts = {
        "train": data.train and data.train.pinned(roots),
        "base": data.base and data.base.pinned(roots),
        "eval": {name: dataset.pinned(roots) for name, dataset in data.eval.items()},
    }
    return experiment.model_copy(
        update={"model": experiment.model.pinned(roots), "dataset": data.model_copy(update=texts)}
    )


def unfinished(plan: Plan, project: Project) -> dict[str, str]:
    """Title and reason of every cell that has no numbers now."""
    found: dict[str, str] = {}
    for item in plan.cells:
        record = find_record(project.results, item.cell, item.key)
        if record is None:
            found[item.cell.title] = "not run"
        elif record.status != "ok":
            error = record.error
            where = f" (log: {project.results.name}/{error.log})" if error and error.log else ""
            reason = f"{error.stage}: {error.type}: {error.message}" if error else ""
            found[item.cell.title] = f"{record.status}: {reason}{where}"
    return found
