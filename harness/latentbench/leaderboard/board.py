"""What a leaderboard is: groups of rows that may be ranked together, columns, values, verdicts about differences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json
from latentbench.leaderboard.load import ON_MACHINE, LoadedRecord, age_of, content_of
from latentbench.metrics.base import Display
from latentbench.metrics.recorded import display_of
from latentbench.metrics.value import MetricValue
from latentbench.records.numbers import Heading, Headings, Numbers
from latentbench.records.record import Status
from latentbench.statistics.paired import counted

Standing = Literal["best", "tied", "behind"]
BadgeKind = Literal["imported", "partial", "failed", "dirty", "old", "superseded", "warning"]


@dataclass(frozen=True)
class Column:
    """One number of one metric on one domain."""

    metric: str
    version: int
    domain: str | None
    budget: int | None
    params: str
    """Further parameters as text, e.g. `tokens=30000`."""
    unit: str
    higher_is_better: bool | None

    @staticmethod
    def of(value: MetricValue | Heading) -> Column:
        """The column a record's number stands in."""
        where = (value.id, value.version, value.domain, value.budget, value.settings)
        return _column(*where, value.unit, value.higher_is_better)

    def __hash__(self) -> int:
        return hash(self.key)  # tables ask for it a hundred thousand times, and the key is kept

    @cached_property
    def key(self) -> str:
        """Unique text, e.g. `chemistry/explained_variance.centred@1[budget=8]`."""
        params = ",".join(p for p in (f"budget={self.budget}" if self.budget is not None else "", self.params) if p)
        return f"{self.domain or ''}/{self.metric}@{self.version}" + (f"[{params}]" if params else "")

    @property
    def label(self) -> str:
        """Short heading without the domain: the number's id where its metric gives it none."""
        heading = self.display.heading if self.display else self.metric
        return heading + (f" @{self.budget}" if self.budget is not None else "")

    @property
    def display(self) -> Display | None:
        """How the number is to be shown, as its metric says."""
        return ON_MACHINE.get(self.metric) or display_of(self.metric)

    @property
    def headline(self) -> int | None:
        """Its place in the default table, None where it does not stand there."""
        return self.display.headline if self.display else None


@lru_cache(maxsize=4096)
def _column(*fields: Any) -> Column:
    """One object per column, so that thousands of rows compose its key once."""
    return Column(*fields)


@lru_cache(maxsize=4096)
def columns_of(headings: Headings) -> dict[str, tuple[int, Column]]:
    """By its key the place and the column of each of a record's numbers."""
    return {(column := Column.of(heading)).key: (place, column) for place, heading in enumerate(headings)}


def number_of(cell: LoadedRecord, key: str) -> tuple[Numbers, int] | None:
    """The numbers in which a cell's number of some column stands, and its place there; None where it has none."""
    numbers: Numbers | None = cell.numbers
    if numbers is not None and (found := columns_of(numbers.headings).get(key)):
        return numbers, found[0]
    numbers = cell.on_machine
    found = columns_of(numbers.headings).get(key) if numbers is not None else None
    return (numbers, found[0]) if numbers is not None and found else None


BEYOND = "†"
"""Marks numbers that were measured with more active latents than the SAE was trained with."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number of a row: the mean over its seeds."""

    value: float | None
    reason: str | None = None
    """Why the value or its interval is missing."""
    low: float | None = None
    high: float | None = None
    """95 % interval over the units, for the seeds that were trained."""
    sd: float | None = None
    """Standard deviation over seeds, None for one seed."""
    seeds: tuple[float, ...] = ()
    n: int | None = None
    """Independent units behind each seed's number, None where the seeds differ in it."""
    units: str = ""
    """What they are, in the plural; empty where that is not known."""
    repeats: int = 0
    """How many more were measured that repeat one of those."""
    trained_k: int | None = None
    """Active latents per token in training, where the number is measured with more."""

    @property
    def mark(self) -> str:
        """Stands behind the number in tables."""
        return BEYOND if self.trained_k is not None else ""

    def overlaps(self, other: Value) -> bool:
        """Whether both have several seeds and the ranges of the numbers over seeds overlap."""
        ours, theirs = self.seeds, other.seeds
        return min(len(ours), len(theirs)) > 1 and max(min(ours), min(theirs)) <= min(max(ours), max(theirs))


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """How a row stands against the best of its group in one column."""

    standing: Standing | None
    p: float | None = None
    """Holm-adjusted p-value of the difference to the best."""
    reason: str | None = None


class RowValues(Mapping[str, Value]):
    """The values of a row by column key, each made when somebody looks at it: short tables show a tenth of them."""

    def __init__(self, columns: Mapping[str, Column], make: Callable[[Column], Value]) -> None:
        self._columns, self._make = columns, make
        self._made: dict[str, Value] = {}

    def __getitem__(self, key: str) -> Value:
        if key not in self._made:
            self._made[key] = self._make(self._columns[key])
        return self._made[key]

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(frozen=True)
class Badge:
    """Something the reader must know before trusting a row; `text` stands in tables, `detail` where there is room."""

    kind: BadgeKind
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One spec and label over its seeds."""

    spec: str
    label: str
    cells: tuple[LoadedRecord, ...]
    """The newest record of every seed, by seed."""
    expected: tuple[int, ...]
    """Seeds that other cells of the spec have."""
    values: Mapping[str, Value] = field(default_factory=dict)
    badges: tuple[Badge, ...] = ()

    @cached_property
    def id(self) -> str:
        """Identifier within a board."""
        return digest("row", [self.spec, self.label, self.newest.record.cell])[:12]

    @property
    def title(self) -> str:
        """Spec name and label."""
        return f"{self.spec}[{self.label}]" if self.label else self.spec

    @cached_property
    def measured(self) -> tuple[LoadedRecord, ...]:
        """The cells that have numbers."""
        return tuple(cell for cell in self.cells if cell.record.status == "ok")

    @cached_property
    def content(self) -> str | None:
        """A digest of the statistics of its measured cells; None where one has none."""
        return content_of(self.measured)

    @cached_property
    def newest(self) -> LoadedRecord:
        """The newest cell with numbers, or the newest of all."""
        return max(self.measured or self.cells, key=age_of)

    @cached_property
    def complete(self) -> bool:
        """Whether every expected seed was measured; other rows are shown and not ranked."""
        return {cell.record.seed for cell in self.measured} >= set(self.expected)

    @cached_property
    def form(self) -> Hashable:
        """Equal for rows whose numbers stand on as many units, whatever they are."""
        cells = ((cell.asked.metrics, cell.numbers) for cell in self.measured)
        return tuple((metrics, numbers.headings, numbers.pattern, numbers.missing) for metrics, numbers in cells)

    @property
    def status(self) -> Status:
        """`ok` when anything was measured, else what happened to the newest cell."""
        return "ok" if self.measured else self.newest.record.status

    @property
    def wall_seconds(self) -> float | None:
        """Mean over seeds of the time taken, all stages together."""
        times = [sum(cell.record.cost.wall_seconds.values()) for cell in self.measured if cell.record.cost.wall_seconds]
        return sum(times) / len(times) if times else None


@dataclass(frozen=True)
class Fact:
    """A fact in which this group differs from the board's largest."""

    path: str
    here: Json
    there: Json


@dataclass(frozen=True)
class RowGroup:
    """Rows that were measured alike on all domains they share, and may be ranked there."""

    key: str
    title: str
    domains: tuple[str, ...]
    facts: Mapping[str, Json]
    """Domain to the facts that agree."""
    differs: tuple[Fact, ...]
    columns: tuple[Column, ...]
    shown: tuple[Column, ...]
    """The columns of the short table."""
    rows: tuple[Row, ...]
    verdicts: Mapping[tuple[str, str], RowVerdict] = field(default_factory=dict)
    """By row id and column key."""

    @cached_property
    def counts(self) -> Mapping[str, str]:
        """Domain to what its numbers stand on, e.g. `128 documents, 40–64 latents` or `500 documents (5 distinct)`."""
        found: dict[str, dict[str, set[tuple[int, int]]]] = {}
        rows = list({row.form: row for row in reversed(self.rows)}.values())[::-1]  # the first of each form
        for column in (column for column in self.columns if column.domain is not None):
            for value in (row.values[column.key] for row in rows if column.key in row.values):
                if value.n is not None and value.units:
                    found.setdefault(column.domain or "", {}).setdefault(value.units, set()).add(
                        (value.n, value.repeats)
                    )
        return {domain: ", ".join(_counted(ns, units) for units, ns in by.items()) for domain, by in found.items()}

    def beyond(self, columns: Iterable[Column]) -> bool:
        """Whether a number of these columns is marked."""
        keys = [column.key for column in columns]
        return any(row.values[key].mark for row in self.rows for key in keys if key in row.values)

    @cached_property
    def _alike(self) -> Mapping[tuple[str | None, str], Sequence[Column]]:
        """The columns of each label on each domain."""
        found: dict[tuple[str | None, str], list[Column]] = {}
        for column in self.columns:
            found.setdefault((column.domain, column.label), []).append(column)
        return found

    def heading(self, column: Column) -> str:
        """The column's label, with what tells it from others of that label on its domain (a judge, a version).

        What all of them share says nothing and is left out.
        """
        same = self._alike.get((column.domain, column.label), [column])
        told = [f"v{column.version}"] if len({c.version for c in same}) > 1 else []
        common = set.intersection(*(set(c.params.split(",")) for c in same))
        told += [param for param in column.params.split(",") if param and param not in common]
        return f"{column.label} ({', '.join(told)})" if told else column.label

    def verdict(self, row: Row, column: Column) -> RowVerdict:
        """How a row stands in a column."""
        return self.verdicts.get((row.id, column.key), RowVerdict(None))


def _counted(numbers: Collection[tuple[int, int]], units: str) -> str:
    """`numbers` are pairs: how many are distinct, and how many more repeat those."""
    measured = [distinct + repeats for distinct, repeats in numbers]
    text = counted(measured[0], units) if len(set(measured)) == 1 else f"{_span(measured)} {units}"
    repeated = any(repeats for _, repeats in numbers)
    return f"{text} ({_span([distinct for distinct, _ in numbers])} distinct)" if repeated else text


def _span(numbers: Collection[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


@dataclass(frozen=True)
class Board:
    """A leaderboard: a pure function of the records."""

    groups: tuple[RowGroup, ...]
    superseded: tuple[str, ...]
    """Paths of older records that newer ones replace."""
    problems: tuple[str, ...]
    """Files that could not be used, each with the reason."""


def ranked(rows: Iterable[Row], shown: Sequence[Column]) -> tuple[Row, ...]:
    """Best first in the first column that has a direction; then rows that are not ranked; then rows without numbers."""
    leading = next((column for column in shown if column.higher_is_better is not None), None)

    def place(row: Row) -> tuple[int, float, str, str]:
        value = row.values[leading.key].value if leading and row.measured else None
        if leading is None or value is None:
            return (2 if not row.measured else 1, 0.0, row.spec, row.label)
        return (0 if row.complete else 1, -value if leading.higher_is_better else value, row.spec, row.label)

    return tuple(sorted(rows, key=place))
