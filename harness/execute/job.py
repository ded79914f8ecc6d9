"""The worker contract: a job is a JSON file that names cells; a worker writes one record per cell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from adapters.protocols import Roots
from harness.plan.plan import PlannedCell
from harness.record import SpecOrigin
from harness.section import Json
from harness.spec.cells import Cell
from harness.spec.experiment import Experiment


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
    def timeout(self) -> float | None:
        """Seconds allowed: the sum of the cells' timeouts, or None when one of them has none."""
        limits = [item.cell.experiment.resources.timeout_seconds for item in self.cells]
        return None if None in limits else sum(limit for limit in limits if limit is not None)

    @property
    def memory(self) -> int | None:
        """Bytes allowed: the largest of the cells' limits, or None when one of them has none."""
        limits = [item.cell.experiment.resources.memory for item in self.cells]
        return None if None in limits else max(int(limit) for limit in limits if limit is not None)

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
