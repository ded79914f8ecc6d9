"""Jobs: which cells are computed together, and the worker contract.

Cells that read the same hidden states form a job; a cell's numbers do not depend on it. A job is a JSON file that names
cells; a worker writes one record per cell.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from latentbench.core.hashing import digest
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.distributed.worker_process import Limits
from latentbench.plan.plan import PlannedCell
from latentbench.records.record import SpecOrigin
from latentbench.spec.cells import Cell
from latentbench.spec.experiment import Experiment


@dataclass(frozen=True)
class JobCell:
    """A cell to compute and the key it was planned under."""

    cell: Cell
    key: str


@dataclass(frozen=True)
class Job:
    """Cells that share hidden states and are computed together."""

    cells: tuple[JobCell, ...]
    store: Path
    results: Path
    roots: Roots
    device: str
    threads: int

    @property
    def limits(self) -> Limits:
        """Limits of the process that computes the job: the sum of the cells' timeouts, the largest of their memory
        limits.

        A cell without a limit lifts it for all. One that is too slow or too large thus costs the others of its group
        only their time: when the process is stopped they are run again one by one, each with its own limits.
        """
        resources = [item.cell.experiment.resources for item in self.cells]
        seconds = [asked.timeout_seconds for asked in resources]
        memory = [asked.memory for asked in resources]
        return Limits(
            self.threads,
            timeout=None if None in seconds else sum(limit for limit in seconds if limit is not None),
            memory=None if None in memory else max(int(limit) for limit in memory if limit is not None),
        )

    @property
    def memory_asked(self) -> int | None:
        """Bytes that the hungriest cell asks for, whether or not others are limited; None when no cell says."""
        stated = [int(m) for item in self.cells if (m := item.cell.experiment.resources.memory) is not None]
        return max(stated, default=None)

    @property
    def gpus(self) -> float:
        """Accelerators, or the part of one, that the hungriest cell asks for."""
        return max(item.cell.experiment.resources.gpus for item in self.cells)

    @property
    def devices(self) -> int:
        """Devices that train one SAE together; each takes `threads` threads, and a GPU unless on the CPU."""
        return max(item.cell.experiment.devices for item in self.cells)

    @property
    def states_threads(self) -> bool:
        """Whether some cell says how many threads it wants."""
        return any(item.cell.experiment.resources.cpus is not None for item in self.cells)

    def single_cells(self) -> list[Job]:
        """A job for each cell, with the threads that it asks for itself."""
        return [
            replace(self, cells=(item,), threads=item.cell.experiment.resources.cpus or self.threads)
            for item in self.cells
        ]

    def to_json(self) -> Json:
        """The job as JSON data."""
        cells = [
            {
                "origin": item.cell.origin.plain(),
                "label": item.cell.label,
                "experiment": item.cell.experiment.plain(),
                "seed": item.cell.seed,
                "key": item.key,
            }
            for item in self.cells
        ]
        roots = {"project": str(self.roots.project), "allowed": list(map(str, self.roots.allowed))}
        places = {"store": str(self.store), "results": str(self.results), "roots": roots}
        return {"cells": cells, **places, "device": self.device, "threads": self.threads}

    @staticmethod
    def from_json(data: Json) -> Job:
        """The inverse of `to_json`."""
        cells = tuple(
            JobCell(
                Cell(
                    SpecOrigin(**item["origin"]),
                    item["label"],
                    Experiment.model_validate_json(json.dumps(item["experiment"]), strict=True),
                    item["seed"],
                ),
                item["key"],
            )
            for item in data["cells"]
        )
        store = Path(data["store"])
        roots = Roots(Path(data["roots"]["project"]), tuple(map(Path, data["roots"]["allowed"])), store)
        return Job(cells, store, Path(data["results"]), roots, data["device"], data["threads"])


Group = tuple[PlannedCell, ...]
"""Cells that become one job."""


def groups_of(cells: tuple[PlannedCell, ...], workers: int) -> list[Group]:
    """Cells with the same model, training tokens and seed together; large groups are halved while workers are idle."""
    by_stream: dict[str, list[PlannedCell]] = defaultdict(list)
    for planned in cells:
        by_stream[_stream(planned)].append(planned)
    groups = [tuple(group) for group in by_stream.values()]
    while len(groups) < workers and max(map(len, groups), default=0) > 1:
        largest = max(groups, key=len)
        groups.remove(largest)
        # Every other cell: neighbours in a matrix of options cost alike, so both halves take about the same time.
        groups += [largest[::2], largest[1::2]]
    return groups


def devices_of(cells: Group) -> int:
    """The most devices on which some cell trains an SAE."""
    return max((item.cell.experiment.devices for item in cells), default=1)


def threads_of(cells: Group) -> int:
    """Processor threads of the group's process: what its cells ask for, by default half of the machine.

    Each of the processes that train an SAE on several devices has as many; by default the machine is divided among
    them. The number is the same on every executor, because a matrix product summed by another number of threads rounds
    differently.
    """
    asked = [item.cell.experiment.resources.cpus for item in cells]
    stated = [cpus for cpus in asked if cpus is not None]
    return max(stated) if stated else max(1, (os.cpu_count() or 2) // max(2, devices_of(cells)))


def _stream(planned: PlannedCell) -> str:
    """What cells of one group share: the model, the devices, and the texts and seed of training or the subject
    studied."""
    stages = planned.stages
    tokens = next((sae.tokens for sae in stages.saes if sae.tokens), None)
    trained = [tokens.key, planned.cell.seed] if tokens else None
    subject = stages.subject if stages.subject and not trained else None
    return digest("group", [stages.model, trained, subject and subject.key, planned.cell.experiment.devices])
