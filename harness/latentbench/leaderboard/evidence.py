"""What intervals and tests of a row rest on: its statistics per unit, read once and resampled once.

That statistics give the recorded numbers was checked on loading. What was worked out of them is kept by the digests of their
files (harness/latentbench/store/derived.py), so that a table of known records needs none of them.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from latentbench.statistics.columns import AskedNumber, estimates_of, intervals_of
from latentbench.statistics.intervals import RESAMPLES
from latentbench.statistics.paired import Formula, interval, mean_over_seeds, replicates
from latentbench.statistics.seeds import SeedStatistics
from latentbench.statistics.unpaired import Estimates, estimated, unpaired_interval
from latentbench.store.derived import Derived

METHOD = 2
"""Raised when intervals or tests are worked out in another way, so that what is kept of them is not asked for any more."""
_KEPT = 256 << 20
"""Bytes of statistics that stay in memory: rows are asked for again by tests and pages, a results folder may not fit."""


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


@dataclass(frozen=True)
class AverageSeed:
    """What paired tests of one number need of a row: they are indifferent to everything but the mean of its seeds."""

    formula: Formula
    inputs: tuple[Array, ...]
    """[inputs][units]"""
    units: str


@dataclass(frozen=True)
class SeedsApart:
    """What tests of one number need of a row whose units are things of their own."""

    estimates: Estimates
    units: str


Tested = AverageSeed | SeedsApart | str
"""What tests of one number need of a row, or why there can be none."""
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
        self.pairs = Kept(derived, f"pairs/{METHOD}")
        self._intervals = Kept(derived, f"intervals/{METHOD}/{RESAMPLES}")
        self._rows: OrderedDict[tuple[str, ...], SeedStatistics | str] = OrderedDict()
        self._bytes = 0

    def expect(self, rows: Iterable[Sequence[LoadedRecord]]) -> None:
        """Says which rows' intervals will be asked for, so that what is known of them is fetched in one go."""
        self._intervals.fetch(key for cells in rows if (key := content_of(cells)))

    def keep(self) -> None:
        """Hands what was worked out to later tables."""
        for kept in (self._intervals, self.tests, self.pairs):
            kept.write()

    def evidence(self, cells: Sequence[LoadedRecord], column: Column) -> UnitStatistics:
        """What intervals and tests of a column need, over the seeds of a row. Raises MissingStatistics."""
        return self._evidence(cells, column, self._row(cells))

    def _evidence(self, cells: Sequence[LoadedRecord], column: Column, row: SeedStatistics | str) -> UnitStatistics:
        estimator = self._estimator(cells, column)
        names = names_of(cells[0], column)
        if isinstance(row, str):
            raise MissingStatistics(row)
        _check(row, names, estimator)
        inputs = tuple(np.stack([own[name] for name in names], axis=1) for own in row.seeds)
        return UnitStatistics(estimator.formula, inputs, estimator.units, estimator.paired)

    def tested(self, cells: Sequence[LoadedRecord], columns: Collection[Column]) -> dict[Column, Tested]:
        """What tests need of a row in many columns, from one look at its files."""
        known = {column: estimator for column in columns if (estimator := estimator_of(cells[0], column))}
        row = self._row(cells) if known else UNKNOWN
        if isinstance(row, str):
            return {column: row if column in known else UNKNOWN for column in columns}
        found: dict[Column, Tested] = dict.fromkeys(columns, UNKNOWN)
        apart: dict[str, AskedNumber] = {}
        for column, estimator in known.items():
            names = names_of(cells[0], column)
            if row.units(names) is None:
                found[column] = self._unlike(cells, column, row)
            elif estimator.paired:
                found[column] = AverageSeed(estimator.formula, tuple(row.means(names)), estimator.units)
            else:
                apart[column.key] = AskedNumber(estimator.formula, names, estimator.paired)
                found[column] = estimator.units
        estimates = estimates_of(row, apart)
        return {c: SeedsApart(own, str(found[c])) if (own := estimates.get(c.key)) else found[c] for c in found}

    def _unlike(self, cells: Sequence[LoadedRecord], column: Column, row: SeedStatistics) -> Tested:
        """Of seeds that differ in what they have."""
        try:
            own = self._evidence(cells, column, row)
        except MissingStatistics as error:
            return str(error)
        if own.paired:
            return AverageSeed(own.formula, tuple(mean_over_seeds(own.inputs).T), own.units)
        return SeedsApart(estimated(own.formula, own.inputs), own.units)

    def _estimator(self, cells: Sequence[LoadedRecord], column: Column) -> Estimator:
        estimator = estimator_of(cells[0], column)
        if estimator is None:
            raise MissingStatistics(UNKNOWN)
        return estimator

    def intervals(self, cells: Sequence[LoadedRecord], columns: Sequence[Column]) -> dict[str, Ends]:
        """95 % intervals of the means over a row's seeds, by column key."""
        key = content_of(cells)
        known = self._intervals.of(key) if key else {}
        tags = {column.key: tag_of(cells[0], column) for column in columns}
        missing = [column for column in columns if (tag := tags[column.key]) is not None and tag not in known]
        made = self._worked_out(cells, missing)
        if key:
            self._intervals.keep(key, {str(tags[name]): ends for name, ends in made.items()})
        return {name: made.get(name) or _ends(tag, known) for name, tag in tags.items()}

    def _worked_out(self, cells: Sequence[LoadedRecord], columns: Sequence[Column]) -> dict[str, Ends]:
        """All columns of a row from one resampling of its files."""
        row, found = self._row(cells) if columns else "", dict[str, Ends]()
        alike: dict[str, AskedNumber] = {}
        for column in columns:
            estimator, names = self._estimator(cells, column), names_of(cells[0], column)
            if isinstance(row, str):
                found[column.key] = None, None, row
            elif row.units(names) is None:  # the seeds differ in what they have
                found[column.key] = self._of_unlike(cells, column, row)
            else:
                alike[column.key] = AskedNumber(estimator.formula, names, estimator.paired)
                found[column.key] = None, None, f"too few {estimator.units} for an interval"
        if alike and not isinstance(row, str):
            known = intervals_of(row, alike).items()
            found |= {name: (low, high, None) for name, (low, high) in known if low is not None}
            row.forget()
        return found

    def _of_unlike(self, cells: Sequence[LoadedRecord], column: Column, row: SeedStatistics) -> Ends:
        """The interval of a number whose seeds have other units each."""
        try:
            own = self._evidence(cells, column, row)
        except MissingStatistics as error:
            return None, None, str(error)
        if own.paired:
            low, high = interval(replicates(own.formula, own.inputs), len(own.inputs[0]))
        else:
            low, high = unpaired_interval(own.formula, own.inputs)
        return low, high, f"too few {own.units} for an interval" if low is None else None

    def _row(self, cells: Sequence[LoadedRecord]) -> SeedStatistics | str:
        """The statistics of a row, those of the last rows from memory, or why there are none."""
        paths = _paths(cells)
        if paths not in self._rows:
            self._rows[paths] = self._read_or_reason(cells)
            self._bytes += _size(self._rows[paths])
            while self._bytes > _KEPT and len(self._rows) > 1:
                self._bytes -= _size(self._rows.popitem(last=False)[1])
        self._rows.move_to_end(paths)
        return self._rows[paths]

    def _read_or_reason(self, cells: Sequence[LoadedRecord]) -> SeedStatistics | str:
        read: list[Statistics] = []
        for cell in cells:
            if cell.record.documents is None:
                return UNKNOWN
            try:
                read.append(cell.statistics())
            except RefusedFile as error:
                self.problems[cell.path] = str(error)
                return str(error)
        return SeedStatistics(read)


def _ends(tag: str | None, known: Mapping[str, Json]) -> Ends:
    if tag is None:
        return None, None, UNKNOWN
    low, high, why = known[tag]
    return low, high, why


def _paths(cells: Sequence[LoadedRecord]) -> tuple[str, ...]:
    return tuple(cell.path for cell in cells)


def _size(row: SeedStatistics | str) -> int:
    return 0 if isinstance(row, str) else row.bytes


def _check(row: SeedStatistics, names: Sequence[str], estimator: Estimator) -> None:
    """Raises MissingStatistics unless all seeds have what a number needs."""
    if row.units(names) is not None:
        return
    lengths = set()
    for own in row.seeds:
        if missing := [name for name in names if name not in own]:
            raise MissingStatistics(f"no statistics {', '.join(missing)}")
        if len(here := {len(own[name]) for name in names}) > 1:
            raise MissingStatistics("statistics of different lengths")
        lengths |= here
    if estimator.paired and len(lengths) > 1:
        raise MissingStatistics(f"the seeds were measured on different numbers of {estimator.units}")


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


def names_of(cell: LoadedRecord, column: Column) -> tuple[str, ...]:
    """The statistics behind a column, which has an estimator."""
    return _names(cell.metrics_section, column)


@lru_cache(maxsize=65_536)
def _names(metrics: str, column: Column) -> tuple[str, ...]:
    estimator = estimators(metrics)[column.metric, column.version, column.params]
    return tuple(f"{column.domain}/{name}" for name in estimator.names(column.budget))


def tag_of(cell: LoadedRecord, column: Column) -> str | None:
    """What a column's interval or test is kept under: all that its estimator is, as this installation has it; None without one."""
    return _tag(cell.metrics_section, column)


@lru_cache(maxsize=65_536)
def _tag(metrics: str, column: Column) -> str | None:
    estimator = estimators(metrics).get((column.metric, column.version, column.params))
    if estimator is None:
        return None
    return digest("column", [column.key, estimator.names(column.budget), estimator.units, estimator.paired])[:16]
