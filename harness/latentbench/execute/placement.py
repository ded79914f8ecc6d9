"""Where cells are computed: the executor, its workers and devices, and the jobs that a plan becomes there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from latentbench.core.errors import InvalidInput
from latentbench.distributed.worker_process import EventHandler
from latentbench.execute.job import Job, JobCell, devices_of, groups_of, threads_of
from latentbench.execute.progress_board import ProgressBoard
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.spec.project import Project

ExecutorName = Literal["local", "inline", "ray"]


@dataclass(frozen=True)
class Placement:
    """Where to compute; no number depends on it beyond rounding."""

    executor: ExecutorName = "local"
    address: str | None = None
    """`host:port` of a Ray cluster; None starts one on this machine."""
    workers: int | None = None
    """Processes at a time; None for as many as the threads allow."""
    device: str = "auto"
    scratch: str | None = None
    """Folder on every node's own disk, where nodes of a Ray cluster share none; None where they do."""

    def check(self, plan: Plan, project: Project) -> None:
        """Raises InvalidInput when cells of the plan cannot be placed at all."""
        self._consistent()
        if self.executor == "ray":
            with _ray_jobs(plan, project, self):
                pass  # entering it is what refuses
        elif devices_of(plan.to_run) > 1:
            self._here(plan)

    def run(self, plan: Plan, project: Project, report: EventHandler) -> None:
        """Computes the cells to run, if any; every one has a record afterwards. Raises InvalidInput before anything is
        run."""
        if not plan.to_run:
            return
        self._consistent()
        with ProgressBoard(project.results) as board:
            self._run(plan, project, board.listening(report))

    def _run(self, plan: Plan, project: Project, report: EventHandler) -> None:
        logs = project.results / "logs"
        if self.executor == "ray":
            from latentbench.execute.ray_executor import RayExecutor

            with _ray_jobs(plan, project, self) as jobs:
                RayExecutor(self.workers, logs, self.scratch).run(jobs, report)
        elif self.executor == "local":
            from latentbench.execute.executors import LocalExecutor

            device = self._here(plan)
            jobs = local_jobs(plan, project, device, self.workers)
            LocalExecutor(self.workers or local_slots(plan, device), logs).run(jobs, report)
        else:
            from latentbench.execute.executors import InlineExecutor

            InlineExecutor().run(local_jobs(plan, project, self._here(plan), self.workers), report)

    def slots(self, plan: Plan) -> int:
        """Processes at a time as far as is known here: a cluster is counted like this machine."""
        return 1 if self.executor == "inline" else self.workers or local_slots(plan)

    def _here(self, plan: Plan) -> str:
        """The device on this machine. Raises InvalidInput when it is not there, or fewer of it than cells want."""
        device = resolve_device(self.device)
        _refuse_too_many(plan, device)
        return device

    def _consistent(self) -> None:
        if self.address is not None and self.executor != "ray":
            raise InvalidInput("--address names a Ray cluster; use it with --executor ray")
        if self.scratch is not None and self.executor != "ray":
            raise InvalidInput("--scratch is for nodes of a Ray cluster; use it with --executor ray")


def local_jobs(plan: Plan, project: Project, device: str, workers: int | None) -> list[Job]:
    """The jobs of a plan on this machine: groups of cells, with the threads each may use."""
    return _jobs(plan.to_run, project, device, workers or local_slots(plan, device))


def local_slots(plan: Plan, device: str = "cpu") -> int:
    """How many groups run at a time on this machine: as many as the threads allow that cells ask for on each device.

    One where cells take several GPUs, since every group would take the same: those from cuda:0 on.
    """
    devices = devices_of(plan.to_run)
    if devices > 1 and device != "cpu":
        return 1
    return max(1, (os.cpu_count() or 2) // (threads_of(plan.to_run) * devices))


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


def _refuse_too_many(plan: Plan, device: str) -> None:
    """Raises InvalidInput when cells want more devices than this machine has."""
    wanted = devices_of(plan.to_run)
    if wanted == 1:
        return
    if device == "cpu":
        there, what = os.cpu_count() or 1, "processor cores"
    else:
        import torch

        there, what = torch.cuda.device_count(), "CUDA devices"
    if ":" in device:
        raise InvalidInput(f"training.devices: {wanted} takes cuda:0 to cuda:{wanted - 1}; use --device cuda")
    if wanted > there:
        raise InvalidInput(f"training.devices: {wanted} is more than the {there} {what} of this machine; lower it")


@contextmanager
def _ray_jobs(plan: Plan, project: Project, placement: Placement) -> Iterator[list[Job]]:
    """Joins the cluster and gives the jobs of a plan there. Raises InvalidInput when no node can ever run one."""
    from latentbench.distributed.ray_cluster import joined, nodes, slots
    from latentbench.execute.ray_executor import fitted

    device_of = partial(_ray_device, placement.device)
    device_of(0)  # refuses an unknown device before a cluster is joined or started
    with joined(placement.address):
        jobs, found = list[Job](), nodes()
        for (gpus, devices), cells in _by_gpus(plan.to_run).items():
            device = device_of(gpus)
            leased = 0 if device == "cpu" else gpus or devices
            # As many groups as run at a time: more would only share less of what their cells have in common.
            free = slots(found, threads_of(cells) * devices, leased)
            jobs += _jobs(cells, project, device, placement.workers or free)
        yield fitted(jobs, found)


def _ray_device(device: str, gpus: float) -> str:
    """Where a cell runs in a cluster, whose nodes differ: on a GPU if it asks for one, unless told otherwise."""
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidInput(
            f"unknown device {device!r}; with --executor ray, which hands out the GPUs: auto, cpu or cuda"
        )
    return "cuda" if device == "auto" and gpus else device.replace("auto", "cpu")


def _jobs(cells: tuple[PlannedCell, ...], project: Project, device: str, slots: int) -> list[Job]:
    return [
        Job(
            tuple(JobCell(item.cell, item.key) for item in group),
            project.store,
            project.results,
            project.roots,
            device,
            threads_of(group),
        )
        for group in groups_of(cells, slots)
    ]


def _by_gpus(cells: tuple[PlannedCell, ...]) -> dict[tuple[float, int], tuple[PlannedCell, ...]]:
    """Cells by the GPUs and devices they ask for: in one group the modest would hold what the greedy need."""
    found: dict[tuple[float, int], list[PlannedCell]] = defaultdict(list)
    for cell in cells:
        found[cell.cell.experiment.resources.gpus, cell.cell.experiment.devices].append(cell)
    return {gpus: tuple(group) for gpus, group in found.items()}
