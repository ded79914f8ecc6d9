"""Records of cells whose process is gone: written by the parent, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.execute.job import Job, JobCell
from harness.execute.writing import record_of
from harness.record import Cost, Failure, Status
from harness.results import write_record


@dataclass(frozen=True)
class Loss:
    """How a cell was lost."""

    status: Status
    type: str
    message: str


def write_lost(job: Job, item: JobCell, loss: Loss, log: Path) -> None:
    """Writes the record of a cell that could not write its own."""
    shown = str(log.relative_to(job.results)) if log.is_relative_to(job.results) else log.name
    error = Failure(stage="worker", type=loss.type, message=loss.message, log=shown)
    write_record(job.results, item.cell, record_of(job, item, None, status=loss.status, error=error, cost=Cost()), {})
