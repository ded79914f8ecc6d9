"""Accuracy against what steering costs: a steered cell beside the other rows of its spec, and a sweep over `steering.scale`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeGuard

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.hashing import canonical
from latentbench.leaderboard.load import LoadedRecord, load_one
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.records.results import RECORDS

ACCURACY = "reasoning_accuracy.accuracy"
KL, INCREASE = "capability_cost.kl", "capability_cost.ce_increase"
Rows = Mapping[str, LoadedRecord]
"""Records by label, the cell that all are compared with first."""


def rows_beside(record: Record, results: Path) -> Rows:
    """A cell and, of every other label of its spec and seed, the latest finished record."""
    folder = Path(RECORDS) / record.spec.name
    # Its statistics lie beside it, under the name of its own file.
    own = Path(record.documents.file if record.documents else "none").with_suffix(".json").name
    latest = {record.label: LoadedRecord(record, (folder / own).as_posix(), results)}
    for path in sorted((results / folder).glob(f"*seed{record.seed}-*.json")):
        try:
            found = load_one(path, results)
        except RefusedFile:
            continue  # the leaderboard names it
        other = found.record
        newer = other.label not in latest or latest[other.label].record.created < other.created
        if other.status == "ok" and other.seed == record.seed and other.label != record.label and newer:
            latest[other.label] = found
    return {label or "steered": row for label, row in latest.items()}


def accuracies(rows: Rows, task: str) -> dict[str, MetricValue]:
    """Accuracy on `task` by label, of the rows that were asked the same as the first."""
    found = {label: value for label, row in rows.items() if (value := _value(row.record, ACCURACY, task))}
    own = found.get(next(iter(rows)))
    return {label: value for label, value in found.items() if own and value.params == own.params}


def accuracy_against_cost(rows: Rows, task: str) -> dict[str, tuple[float, float]]:
    """(KL per token on neutral text, accuracy on `task`) by label, at each row's own scale, over all its texts' domains."""
    return {
        label: (cost, accuracy.value)
        for label, accuracy in accuracies(rows, task).items()
        if (cost := _cost(rows[label].record)) is not None and accuracy.value is not None
    }


def _value(record: Record, name: str, domain: str) -> MetricValue | None:
    return next((value for value in record.metrics if (value.id, value.domain) == (name, domain)), None)


def _cost(record: Record) -> float | None:
    """KL at the row's own scale, mean over the domains of neutral text."""
    values = [v.value for v in record.metrics if v.id == KL and not v.params and v.value is not None]
    return fmean(values) if values else None


@dataclass(frozen=True)
class Frontier:
    """One kind of steering at several scales, every number a mean over seeds."""

    label: str
    """Of the row with the chosen scale."""
    scales: tuple[float, ...]
    """Ascending."""
    columns: Mapping[str, Mapping[float, float]]
    """Title to scale to number."""
    chosen: float


def frontiers(
    records: Iterable[Record], selection: str, texts: str | None = None, most_kl: float = float("inf")
) -> list[Frontier]:
    """One frontier for every set of records that differ in `steering.scale` and seed alone.

    The scale is chosen by accuracy on `selection` among those whose KL per token on the domain `texts` is at most
    `most_kl` (see `choose_scale`). Raises InvalidInput where no record swept a scale.
    """
    swept = [group for group in _alike(records) if len({_scale(record) for record in group}) > 1]
    if not swept:
        raise InvalidInput("nothing to choose: no rows differ in `steering.scale` alone; sweep it with `matrix:`")
    return [_frontier(group, selection, texts, most_kl) for group in swept]


def _alike(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        steering = record.resolved.get("steering")
        if record.status == "ok" and steering and _is_number(steering.get("scale")):
            groups[canonical({**record.resolved, "steering": {**steering, "scale": None}})].append(record)
    return list(groups.values())


def _frontier(group: Sequence[Record], selection: str, texts: str | None, most_kl: float) -> Frontier:
    measured = {(value.id, value.domain) for record in group for value in record.metrics}
    wanted = sorted((number, domain) for number, domain in measured if domain and number in (ACCURACY, KL, INCREASE))
    columns = {f"{number.partition('.')[2]} {domain}": by_scale(group, number, domain) for number, domain in wanted}
    chosen = choose_scale(group, selection, texts, most_kl)
    label = next(record.label for record in group if _scale(record) == chosen)
    return Frontier(label, tuple(sorted({_scale(record) for record in group})), columns, chosen)


def choose_scale(records: Iterable[Record], selection: str, dev: str | None = None, most_kl: float = 0.0) -> float:
    """The scale with the highest accuracy on the problems called `selection`, the smaller one of equals.

    `records` are cells that differ in `steering.scale` (and seed, which is averaged over). With `dev`, a domain of
    neutral text, only scales whose `capability_cost.kl` there is at most `most_kl` nats per token are considered. Raises
    InvalidInput when nothing is left to choose from.
    """
    kept = [record for record in records if record.status == "ok"]
    accuracy = by_scale(kept, ACCURACY, selection)
    cost = by_scale(kept, KL, dev) if dev else dict.fromkeys(accuracy, 0.0)
    allowed = [scale for scale in accuracy if scale in cost and cost[scale] <= most_kl]
    if not allowed:
        raise InvalidInput(
            f"no scale to choose: of {len(accuracy)} with {ACCURACY} on {selection!r} none has {KL} ≤ {most_kl:g} on {dev!r}"
            if accuracy
            else f"no scale to choose: no record has {ACCURACY} on {selection!r}"
        )
    return min(allowed, key=lambda scale: (-accuracy[scale], abs(scale)))


def by_scale(records: Iterable[Record], number: str, domain: str) -> Mapping[float, float]:
    """Scale to the mean over seeds of a number at the cells' own scale."""
    found: dict[float, list[float]] = {}
    for record in records:
        scale = (record.resolved.get("steering") or {}).get("scale")
        for value in record.metrics:
            # Numbers of a sweep within one cell carry a scale of their own and are not about the cell's.
            ours = (value.id, value.domain) == (number, domain) and "scale" not in value.params
            if ours and _is_number(scale) and value.value is not None:
                found.setdefault(float(scale), []).append(value.value)
    return {scale: fmean(values) for scale, values in found.items()}


def _is_number(scale: object) -> TypeGuard[float]:
    """A scale may also be missing, or `auto`: then the row was not swept by its spec."""
    return isinstance(scale, int | float)


def _scale(record: Record) -> float:
    return float(record.resolved["steering"]["scale"])
