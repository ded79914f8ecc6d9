"""The worker contract: a job is a JSON file that names cells; a worker writes one record per cell."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from latentbench.execute.process import Limits
from latentbench.plan.plan import PlannedCell
from latentbench.record import SpecOrigin
from latentbench.section import Json
from latentbench.spec.cells import Cell
from latentbench.spec.experiment import Experiment
from latentbench_adapters.protocols import Roots


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
        """Of the process that computes it: the sum of the cells' timeouts and the largest of their memory limits.

        A cell without a limit lifts it for all.
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
        roots = {"project": str(self.roots.project), "allowed": [str(path) for path in self.roots.allowed]}
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
        roots = Roots(Path(data["roots"]["project"]), tuple(map(Path, data["roots"]["allowed"])))
        return Job(cells, Path(data["store"]), Path(data["results"]), roots, data["device"], data["threads"])


def job_cells(planned: tuple[PlannedCell, ...]) -> tuple[JobCell, ...]:
    """The cells of a plan as a job holds them."""
    return tuple(JobCell(item.cell, item.key) for item in planned)
