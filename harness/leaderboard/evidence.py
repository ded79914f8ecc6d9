"""Per-document statistics of rows, for intervals and tests: read once, checked against the recorded numbers."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import ValidationError

from harness.canonical import canonical
from harness.errors import LatentbenchError, NotAvailable, RefusedFile
from harness.leaderboard.board import Column
from harness.leaderboard.load import Loaded
from harness.leaderboard.statistics import Formula, estimate
from harness.metrics.base import Array, Estimator, Metric, Statistics
from harness.record import Record
from harness.registry import sections
from harness.section import Json

_KEPT = 64
"""Records whose statistics stay in memory."""
_AGREEMENT = 1e-6


class Unusable(LatentbenchError):
    """No statistics for a number, with the reason; the number is shown without interval and test."""


@dataclass(frozen=True)
class Evidence:
    """What intervals and tests of one number need."""

    formula: Formula
    inputs: tuple[Array, ...]
    """Per seed the statistics [documents, inputs]."""

    def matches(self, other: Evidence) -> bool:
        """Whether both were measured on equally many documents."""
        return len(self.inputs[0]) == len(other.inputs[0])


class Source:
    """Reads evidence; remembers what it read last and what it had to refuse."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._statistics: OrderedDict[str, Statistics | str] = OrderedDict()

    def evidence(self, cells: Sequence[Loaded], column: Column) -> Evidence:
        """Evidence for a column over the seeds of a row. Raises Unusable."""
        estimator = _estimator(cells[0].record, column)
        inputs = tuple(self._inputs(cell, estimator, column) for cell in cells)
        if len({len(stats) for stats in inputs}) > 1:
            raise Unusable("the seeds were measured on different numbers of documents")
        return Evidence(estimator.formula, inputs)

    def _inputs(self, cell: Loaded, estimator: Estimator, column: Column) -> Array:
        statistics = self._read(cell)
        names = [f"{column.domain}/{name}" for name in estimator.names(column.budget)]
        missing = [name for name in names if name not in statistics]
        if missing:
            raise Unusable(f"no per-document statistics {', '.join(missing)}")
        if len({len(statistics[name]) for name in names}) > 1:
            raise Unusable("per-document statistics of different lengths")
        inputs = np.stack([statistics[name] for name in names], axis=1)
        self._confirm(cell, column, estimate(estimator.formula, [inputs]))
        return inputs

    def _read(self, cell: Loaded) -> Statistics:
        if cell.path not in self._statistics:
            self._statistics[cell.path] = self._read_or_reason(cell)
        self._statistics.move_to_end(cell.path)
        while len(self._statistics) > _KEPT:
            self._statistics.popitem(last=False)
        found = self._statistics[cell.path]
        if isinstance(found, str):
            raise Unusable(found)
        return found

    def _read_or_reason(self, cell: Loaded) -> Statistics | str:
        if cell.record.documents is None:
            return "no per-document statistics"
        try:
            return cell.statistics()
        except RefusedFile as error:
            self.problems[cell.path] = str(error)
            return str(error)

    def _confirm(self, cell: Loaded, column: Column, recomputed: float) -> None:
        """The statistics must give the recorded number, or they are not its statistics."""
        recorded = next((m.value for m in cell.record.metrics if Column.of(m).key == column.key), None)
        if recorded is None or not math.isclose(recorded, recomputed, rel_tol=_AGREEMENT, abs_tol=1e-9):
            reason = f"{cell.path}: {column.key} is {recorded} in the record and {recomputed} from its statistics"
            self.problems[f"{cell.path} {column.key}"] = reason
            raise Unusable("the recorded number does not follow from its statistics")


def _estimator(record: Record, column: Column) -> Estimator:
    known = estimators(canonical(record.resolved.get("metrics", [])))
    if (column.metric, column.version) not in known:
        raise Unusable("no per-document statistics")
    return known[column.metric, column.version]


@lru_cache(maxsize=64)
def estimators(metrics: str) -> dict[tuple[str, int], Estimator]:
    """Id and version to estimator, for the `metrics` section of a resolved spec (as canonical JSON)."""
    numbers = [number for metric in installed(json.loads(metrics)) for number in metric.numbers()]
    return {(number.id, number.version): number for number in numbers}


def current_versions(record: Record) -> dict[str, int]:
    """The version of each of the record's numbers that this installation would measure."""
    known = list(installed(record.resolved.get("metrics", [])))
    numbers = {number.id: number.version for metric in known for number in metric.numbers()}
    return numbers | {tally.id: tally.version for metric in known for tally in metric.tallies()}


def installed(metrics: Json) -> Iterator[Metric]:
    """The metrics of a resolved spec that this installation knows."""
    for section in metrics if isinstance(metrics, list) else []:
        try:
            kind = sections("metrics")[section["metric"]]
            metric = kind.model_validate(section)
        except (KeyError, TypeError, ValidationError, NotAvailable):
            continue  # a metric of another version or of a plug-in that is not here: its numbers stay, untested
        if isinstance(metric, Metric):
            yield metric
