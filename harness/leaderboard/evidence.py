"""Per-unit statistics of rows, for intervals and tests: read once, checked against the recorded numbers."""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import ValidationError

from harness.errors import LatentbenchError, NotAvailable, RefusedFile
from harness.leaderboard.board import Column, params_text
from harness.leaderboard.load import Loaded
from harness.leaderboard.statistics import Formula, estimate
from harness.metrics.base import Array, Estimator, Metric, Statistics
from harness.record import MetricValue
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
    """Per seed the statistics [units, inputs]."""
    units: str = "documents"
    """What the statistics are per, in the plural."""
    paired: bool = True
    """Whether unit i is the same thing in every row and seed, as a document is and a latent is not."""


class Source:
    """Reads evidence; remembers what it read last and what it had to refuse."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._statistics: OrderedDict[str, Statistics | str] = OrderedDict()
        self._numbers: dict[str, dict[str, MetricValue]] = {}

    def evidence(self, cells: Sequence[Loaded], column: Column) -> Evidence:
        """Evidence for a column over the seeds of a row. Raises Unusable."""
        estimator = estimator_of(cells[0], column)
        if estimator is None:
            raise Unusable("no per-document statistics")
        inputs = tuple(self._inputs(cell, estimator, column) for cell in cells)
        if estimator.paired and len({len(stats) for stats in inputs}) > 1:
            raise Unusable(f"the seeds were measured on different numbers of {estimator.units}")
        return Evidence(estimator.formula, inputs, estimator.units, estimator.paired)

    def numbers(self, cell: Loaded) -> dict[str, MetricValue]:
        """A cell's numbers by the key of their column."""
        if cell.path not in self._numbers:
            self._numbers[cell.path] = {Column.of(metric).key: metric for metric in cell.numbers}
        return self._numbers[cell.path]

    def _inputs(self, cell: Loaded, estimator: Estimator, column: Column) -> Array:
        statistics = self._read(cell)
        names = [f"{column.domain}/{name}" for name in estimator.names(column.budget)]
        missing = [name for name in names if name not in statistics]
        if missing:
            raise Unusable(f"no statistics {', '.join(missing)}")
        if len({len(statistics[name]) for name in names}) > 1:
            raise Unusable("statistics of different lengths")
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
        metric = self.numbers(cell).get(column.key)
        recorded = metric.value if metric else None
        if recorded is None or not math.isclose(recorded, recomputed, rel_tol=_AGREEMENT, abs_tol=1e-9):
            reason = f"{cell.path}: {column.key} is {recorded} in the record and {recomputed} from its statistics"
            self.problems[f"{cell.path} {column.key}"] = reason
            raise Unusable("the recorded number does not follow from its statistics")


def estimator_of(cell: Loaded, column: Column) -> Estimator | None:
    """The estimator behind a column, None where this installation knows none."""
    return estimators(cell.metrics_section).get((column.metric, column.version, column.params))


@lru_cache(maxsize=64)
def estimators(metrics: str) -> dict[tuple[str, int, str], Estimator]:
    """Id, version and parameters to estimator, for the `metrics` section of a resolved spec (as canonical JSON)."""
    numbers = [number for metric in installed(json.loads(metrics)) for number in metric.numbers()]
    return {(number.id, number.version, params_text(number.params)): number for number in numbers}


def units_of(cell: Loaded, column: Column, method: str | None = None) -> str:
    """What a column's number has `n` of: by its metric, else by the method of its interval, else nothing known."""
    estimator = estimator_of(cell, column)
    if estimator is not None:
        return estimator.units
    named = re.match(r"([a-z]+) (bootstrap|normal)", method or "")
    if named:
        return f"{named[1]}s"
    return "documents" if column.metric in tallies(cell.metrics_section) else ""


@lru_cache(maxsize=64)
def tallies(metrics: str) -> frozenset[str]:
    """Ids of the numbers that count firing latents over documents, for a `metrics` section as above."""
    return frozenset(tally.id for metric in installed(json.loads(metrics)) for tally in metric.tallies())


@lru_cache(maxsize=64)
def current_versions(metrics: str) -> dict[str, int]:
    """The version of each number that this installation would measure, for a `metrics` section as above."""
    known = list(installed(json.loads(metrics)))
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
