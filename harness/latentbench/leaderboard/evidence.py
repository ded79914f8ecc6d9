"""Per-unit statistics of rows, for intervals and tests: read once. That they give the numbers was checked on loading."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentbench.errors import LatentbenchError, RefusedFile
from latentbench.leaderboard.board import Column
from latentbench.leaderboard.load import Loaded
from latentbench.leaderboard.statistics import Formula
from latentbench.metrics.base import Array, Estimator, Statistics
from latentbench.metrics.recorded import estimators, tallies
from latentbench.record import MetricValue

_KEPT = 64
"""Records whose statistics stay in memory."""


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
        return np.stack([statistics[name] for name in names], axis=1)

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


def estimator_of(cell: Loaded, column: Column) -> Estimator | None:
    """The estimator behind a column, None where this installation knows none."""
    return estimators(cell.metrics_section).get((column.metric, column.version, column.params))


def units_of(cell: Loaded, column: Column, method: str | None = None) -> str:
    """What a column's number has `n` of: by its metric, else by the method of its interval, else nothing known."""
    estimator = estimator_of(cell, column)
    if estimator is not None:
        return estimator.units
    named = re.match(r"([a-z]+) (bootstrap|normal)", method or "")
    if named:
        return f"{named[1]}s"
    return "documents" if column.metric in tallies(cell.metrics_section) else ""
