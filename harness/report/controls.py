"""What a steered cell is to be compared with: the other rows of its spec, of the same seed and asked the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.errors import RefusedFile
from harness.record import MetricValue, Record
from harness.results import RECORDS, read_record

ACCURACY = "reasoning_accuracy.accuracy"


def accuracies(record: Record, results: Path, task: str) -> dict[str, MetricValue]:
    """Accuracy on `task` by label: the cell's own first, then every finished row of its spec and seed."""
    own = _value(record, ACCURACY, task)
    if own is None:
        return {}
    others = {other.label or "the other": _value(other, ACCURACY, task) for other in _beside(record, results)}
    alike = {name: value for name, value in others.items() if value and value.params == own.params}
    return {record.label or "steered": own} | alike


def frontier(record: Record, results: Path, task: str) -> dict[str, tuple[float, float]]:
    """(KL per token on neutral text, accuracy on `task`) by label, at each row's own scale, over all its texts' domains."""
    rows = {record.label or "steered": record} | {
        other.label or "the other": other for other in _beside(record, results)
    }
    found = {}
    for name in accuracies(record, results, task):
        cost, accuracy = _cost(rows[name]), _value(rows[name], ACCURACY, task)
        if cost is not None and accuracy and accuracy.value is not None:
            found[name] = (cost, accuracy.value)
    return found


def _beside(record: Record, results: Path) -> Iterator[Record]:
    """The latest finished record of every other label of the same spec and seed."""
    latest: dict[str, Record] = {}
    for path in sorted((results / RECORDS / record.spec.name).glob(f"*seed{record.seed}-*.json")):
        try:
            other = read_record(path)
        except RefusedFile:
            continue  # the leaderboard names it
        newer = other.label not in latest or latest[other.label].created < other.created
        if other.status == "ok" and other.seed == record.seed and other.label != record.label and newer:
            latest[other.label] = other
    yield from latest.values()


def _value(record: Record, name: str, domain: str) -> MetricValue | None:
    return next((value for value in record.metrics if (value.id, value.domain) == (name, domain)), None)


def _cost(record: Record) -> float | None:
    """KL at the row's own scale, mean over the domains of neutral text."""
    values = [v.value for v in record.metrics if v.id == "capability_cost.kl" and not v.params and v.value is not None]
    return sum(values) / len(values) if values else None
