"""What intervals and tests of a row rest on: its statistics per unit, read once and resampled once.

That statistics give the recorded numbers was checked on loading. What was worked out of them is kept by the digests of their
files (harness/latentbench/store/derived.py), so that a table of known records needs none of them.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latentbench.core.errors import LatentbenchError, RefusedFile
from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Column
from latentbench.leaderboard.load import LoadedRecord, content_of
from latentbench.metrics.base import Estimator
from latentbench.metrics.recorded import estimators, tallies
from latentbench.statistics.arrays import Array, Statistics
from latentbench.statistics.intervals import MINIMUM_DOCUMENTS, RESAMPLES, expanded_levels, quantiles
from latentbench.statistics.paired import LEVEL, Formula, mean_of_replicates, mean_over_seeds
from latentbench.statistics.resampling import Resampled
from latentbench.statistics.unpaired import unpaired_interval
from latentbench.store.derived import Derived

METHOD = 1
"""Raised when intervals or tests are worked out in another way, so that what is kept of them is not asked for any more."""
_KEPT = 64
"""Records whose statistics stay in memory: a column's rows are asked for again and again, a results folder may not fit."""


class MissingStatistics(LatentbenchError):
    """No statistics for a number, with the reason; the number is shown without interval and test."""


@dataclass(frozen=True)
class UnitStatistics:
    """What intervals and tests of one number need."""

    formula: Formula
    inputs: tuple[Array, ...]
    """Per seed the statistics [units, inputs]."""
    units: str = "documents"
    """What the statistics are per, in the plural."""
    paired: bool = True
    """Whether unit i is the same thing in every row and seed, as a document is and a latent is not."""


Ends = tuple[float | None, float | None, str | None]
"""Lower and upper end of an interval, and why it has none."""
UNKNOWN = "no per-document statistics"


class Kept:
    """What is known of rows: by a digest of their files, then by what it is about, from earlier tables and from this one."""

    def __init__(self, derived: Derived | None, namespace: str) -> None:
        self._derived, self._namespace = derived, namespace
        self._held: dict[str, dict[str, Json]] = {}
        self._changed: set[str] = set()

    def fetch(self, keys: Iterable[str]) -> None:
        """Asks for everything that is known of many rows in one go."""
        wanted = {key for key in keys if key not in self._held}
        self._held |= {key: {} for key in wanted}
        if self._derived is not None:
            self._held |= self._derived.get_many(self._namespace, wanted)

    def of(self, key: str) -> Mapping[str, Json]:
        """What is known of a row."""
        if key not in self._held:
            self.fetch([key])
        return self._held[key]

    def keep(self, key: str, found: Mapping[str, Json]) -> None:
        """Adds what was worked out."""
        if found:
            self._held[key] = {**self.of(key), **found}
            self._changed.add(key)

    def write(self) -> None:
        """Hands what is new to later tables."""
        if self._derived is not None and self._changed:
            self._derived.put_many(self._namespace, {key: self._held[key] for key in sorted(self._changed)})
        self._changed.clear()


class StatisticsReader:
    """Reads statistics per unit; remembers what it read last, what it worked out and what it had to refuse."""

    def __init__(self, derived: Derived | None = None) -> None:
        self.problems: dict[str, str] = {}
        self.tests = Kept(derived, f"tests/{METHOD}")
        self._intervals = Kept(derived, f"intervals/{METHOD}/{RESAMPLES}")
        self._statistics: OrderedDict[str, Statistics | str] = OrderedDict()
        self._means: tuple[tuple[str, ...], dict[str, Array]] = (), {}

    def expect(self, rows: Iterable[Sequence[LoadedRecord]]) -> None:
        """Says which rows' intervals will be asked for, so that what is known of them is fetched in one go."""
        self._intervals.fetch(key for cells in rows if (key := content_of(cells)))

    def keep(self) -> None:
        """Hands what was worked out to later tables."""
        self._intervals.write()
        self.tests.write()

    def evidence(self, cells: Sequence[LoadedRecord], column: Column) -> UnitStatistics:
        """What intervals and tests of a column need, over the seeds of a row. Raises MissingStatistics."""
        estimator = estimator_of(cells[0], column)
        if estimator is None:
            raise MissingStatistics(UNKNOWN)
        names = self._checked(cells, estimator, column)
        inputs = tuple(np.stack([self._read(cell)[name] for name in names], axis=1) for cell in cells)
        return UnitStatistics(estimator.formula, inputs, estimator.units, estimator.paired)

    def averaged(self, cells: Sequence[LoadedRecord], column: Column) -> UnitStatistics:
        """Evidence that gives the same tests at less cost: one average seed, to which the paired tests are indifferent.

        Raises MissingStatistics.
        """
        estimator = estimator_of(cells[0], column)
        if estimator is None or not estimator.paired:
            return self.evidence(cells, column)
        means = self._means_of(cells)
        for name in (names := self._checked(cells, estimator, column)):
            if name not in means:
                means[name] = mean_over_seeds([self._read(cell)[name] for cell in cells])
        inputs = np.stack([means[name] for name in names], axis=1)
        return UnitStatistics(estimator.formula, (inputs,), estimator.units, estimator.paired)

    def intervals(self, cells: Sequence[LoadedRecord], columns: Sequence[Column]) -> dict[str, Ends]:
        """95 % intervals of the means over a row's seeds, by column key."""
        key = content_of(cells)
        known = self._intervals.of(key) if key else {}
        tags = {column.key: tag_of(cells[0], column) for column in columns}
        missing = [column for column in columns if (tag := tags[column.key]) is not None and tag not in known]
        made = self._worked_out(cells, missing)
        if key:
            self._intervals.keep(key, {str(tags[name]): ends for name, ends in made.items()})
        held = {name: (None, None, UNKNOWN) if tag is None else known.get(tag) for name, tag in tags.items()}
        return {name: made.get(name) or tuple(ends) for name, ends in held.items()}

    def _means_of(self, cells: Sequence[LoadedRecord]) -> dict[str, Array]:
        """Means over seeds of the row that was asked for last, for its columns share them."""
        paths = tuple(cell.path for cell in cells)
        if self._means[0] != paths:
            self._means = paths, {}
        return self._means[1]

    def _worked_out(self, cells: Sequence[LoadedRecord], columns: Sequence[Column]) -> dict[str, Ends]:
        """All columns of a row from one resampling of its files; those over documents get their quantiles together."""
        found: dict[str, Ends] = {}
        replicated: dict[int, dict[str, Array]] = defaultdict(dict)
        resampled: dict[str, Resampled] = {}
        for column in columns:
            estimator = estimator_of(cells[0], column)
            assert estimator is not None
            try:
                names = self._checked(cells, estimator, column)
                for cell in cells:
                    if cell.path not in resampled:
                        resampled[cell.path] = Resampled(self._read(cell))
            except MissingStatistics as error:
                found[column.key] = None, None, str(error)
                continue
            found[column.key] = None, None, f"too few {estimator.units} for an interval"
            own = [resampled[cell.path] for cell in cells]
            if not estimator.paired:
                found[column.key] = self._unpaired(cells, column, names, own)
            elif (n := self._units(cells[0], names)) >= MINIMUM_DOCUMENTS:
                values = mean_of_replicates(estimator.formula, [one.sums(names) for one in own])
                if values is not None:
                    replicated[n][column.key] = values
        for n, values_of in replicated.items():
            lows, highs = quantiles(np.stack(list(values_of.values())), expanded_levels(n, LEVEL))
            for name, low, high in zip(values_of, lows.tolist(), highs.tolist(), strict=True):
                found[name] = low, high, None
        return found

    def _unpaired(
        self, cells: Sequence[LoadedRecord], column: Column, names: Sequence[str], resampled: Sequence[Resampled]
    ) -> Ends:
        evidence = self.evidence(cells, column)
        drawn = None
        if min(map(len, evidence.inputs)) >= MINIMUM_DOCUMENTS:
            drawn = [own.sums(names, stream) for stream, own in enumerate(resampled)]
        low, high = unpaired_interval(evidence.formula, evidence.inputs, drawn=drawn)
        return low, high, None if low is not None else f"too few {evidence.units} for an interval"

    def _units(self, cell: LoadedRecord, names: Sequence[str]) -> int:
        return len(self._read(cell)[names[0]])

    def _checked(self, cells: Sequence[LoadedRecord], estimator: Estimator, column: Column) -> list[str]:
        """Names of the statistics behind a column, which all seeds have. Raises MissingStatistics."""
        names = [f"{column.domain}/{name}" for name in estimator.names(column.budget)]
        lengths = set()
        for cell in cells:
            statistics = self._read(cell)
            if missing := [name for name in names if name not in statistics]:
                raise MissingStatistics(f"no statistics {', '.join(missing)}")
            if len(own := {len(statistics[name]) for name in names}) > 1:
                raise MissingStatistics("statistics of different lengths")
            lengths |= own
        if estimator.paired and len(lengths) > 1:
            raise MissingStatistics(f"the seeds were measured on different numbers of {estimator.units}")
        return names

    def _read(self, cell: LoadedRecord) -> Statistics:
        if cell.path not in self._statistics:
            self._statistics[cell.path] = self._read_or_reason(cell)
        self._statistics.move_to_end(cell.path)
        while len(self._statistics) > _KEPT:
            self._statistics.popitem(last=False)
        found = self._statistics[cell.path]
        if isinstance(found, str):
            raise MissingStatistics(found)
        return found

    def _read_or_reason(self, cell: LoadedRecord) -> Statistics | str:
        if cell.record.documents is None:
            return "no per-document statistics"
        try:
            return cell.statistics()
        except RefusedFile as error:
            self.problems[cell.path] = str(error)
            return str(error)


def estimator_of(cell: LoadedRecord, column: Column) -> Estimator | None:
    """The estimator behind a column, None where this installation knows none."""
    return estimators(cell.metrics_section).get((column.metric, column.version, column.params))


def units_of(cell: LoadedRecord, column: Column, method: str | None = None) -> str:
    """What a column's number has `n` of: by its metric, else by the method of its interval, else nothing known."""
    return _units_of(cell.metrics_section, column, method)


@lru_cache(maxsize=65_536)
def _units_of(metrics: str, column: Column, method: str | None) -> str:
    estimator = estimators(metrics).get((column.metric, column.version, column.params))
    if estimator is not None:
        return estimator.units
    named = re.match(r"([a-z]+) (bootstrap|normal)", method or "")
    if named:
        return f"{named[1]}s"
    return "documents" if column.metric in tallies(metrics) else ""


def tag_of(cell: LoadedRecord, column: Column) -> str | None:
    """What a column's interval or test is kept under: all that its estimator is, as this installation has it; None without one."""
    return _tag(cell.metrics_section, column)


@lru_cache(maxsize=65_536)
def _tag(metrics: str, column: Column) -> str | None:
    estimator = estimators(metrics).get((column.metric, column.version, column.params))
    if estimator is None:
        return None
    return digest("column", [column.key, estimator.names(column.budget), estimator.units, estimator.paired])[:16]
