"""What a steered cell is to be compared with: the other rows of its spec, of the same seed and asked the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from latentbench.errors import RefusedFile
from latentbench.metrics.reasoning.choosing import ACCURACY, KL
from latentbench.record import MetricValue, Record
from latentbench.results import RECORDS, read_record

Rows = Mapping[str, Record]
"""Records by label, the cell that all are compared with first."""


def rows_beside(record: Record, results: Path) -> Rows:
    """A cell and, of every other label of its spec and seed, the latest finished record."""
    latest = {record.label: record}
    for path in sorted((results / RECORDS / record.spec.name).glob(f"*seed{record.seed}-*.json")):
        try:
            other = read_record(path)
        except RefusedFile:
            continue  # the leaderboard names it
        newer = other.label not in latest or latest[other.label].created < other.created
        if other.status == "ok" and other.seed == record.seed and other.label != record.label and newer:
            latest[other.label] = other
    return {label or "steered": row for label, row in latest.items()}


def accuracies(rows: Rows, task: str) -> dict[str, MetricValue]:
    """Accuracy on `task` by label, of the rows that were asked the same as the first."""
    found = {label: value for label, row in rows.items() if (value := _value(row, ACCURACY, task))}
    own = found.get(next(iter(rows)))
    return {label: value for label, value in found.items() if own and value.params == own.params}


def frontier(rows: Rows, task: str) -> dict[str, tuple[float, float]]:
    """(KL per token on neutral text, accuracy on `task`) by label, at each row's own scale, over all its texts' domains."""
    return {
        label: (cost, accuracy.value)
        for label, accuracy in accuracies(rows, task).items()
        if (cost := _cost(rows[label])) is not None and accuracy.value is not None
    }


def _value(record: Record, name: str, domain: str) -> MetricValue | None:
    return next((value for value in record.metrics if (value.id, value.domain) == (name, domain)), None)


def _cost(record: Record) -> float | None:
    """KL at the row's own scale, mean over the domains of neutral text."""
    values = [v.value for v in record.metrics if v.id == KL and not v.params and v.value is not None]
    return fmean(values) if values else None
