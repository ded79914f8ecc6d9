"""The numbers of a record as columns: what thousands of records hold, in a few kilobytes each.

A record has a hundred numbers, and most of what it says of each (id, domain, unit, parameters) all records of a spec say.
That is a list of headings which they share; what is left are three arrays and, where units were counted, a pattern that most
of them share too. A `MetricValue` is made when somebody looks at it.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from latentbench.core.spec_model import Json
from latentbench.metrics.value import Interval, MetricValue, settings_text


@dataclass(frozen=True, slots=True)
class Heading:
    """What a number says beside its value, in whichever record it stands."""

    id: str
    version: int
    domain: str | None
    unit: str
    higher_is_better: bool | None
    params: dict[str, Json]
    level: float | None
    """Level of its interval; None without one."""
    method: str | None

    @property
    def budget(self) -> int | None:
        """As of the number."""
        budget = self.params.get("budget")
        return budget if isinstance(budget, int) else None

    @property
    def settings(self) -> str:
        """As of the number."""
        return settings_text(self.params)


class Headings(tuple[Heading, ...]):
    """The headings of a record's numbers. Equal ones are one object (`headings`), by which tables know them."""

    text: str
    """The JSON that says them."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True, eq=False)
class Pattern:
    """What a record's numbers were counted over. Equal ones are one object (`pattern`)."""

    text: str
    """The JSON that says it."""
    n: tuple[int | None, ...]
    repeats: tuple[int, ...]
    trained_k: tuple[int | None, ...]


@lru_cache(maxsize=65_536)
def headings(text: str) -> Headings:
    """The headings that JSON says."""
    found = Headings(Heading(*fields) for fields in json.loads(text))
    found.text = text
    return found


@lru_cache(maxsize=65_536)
def pattern(text: str) -> Pattern:
    """The pattern that JSON says."""
    return Pattern(text, *(tuple(part) for part in json.loads(text)))


class Numbers(Sequence[MetricValue]):
    """The numbers of a record, each made when it is looked at."""

    __slots__ = ("headings", "highs", "lows", "missing", "pattern", "reasons", "values")

    def __init__(
        self,
        titles: str,
        values: Sequence[float | None],
        ends: Sequence[Sequence[float | None]],
        counted: str,
        why: dict[str, str],
    ) -> None:
        self.headings, self.pattern = headings(titles), pattern(counted)
        self.values, self.lows, self.highs = _column(values), _column(ends[0]), _column(ends[1])
        self.missing = tuple(place for place, value in enumerate(values) if value is None)
        self.reasons = {int(place): reason for place, reason in why.items()}

    @classmethod
    def of(cls, numbers: Iterable[MetricValue]) -> Numbers:
        """Numbers from wherever; the same object where they are columns already."""
        return numbers if isinstance(numbers, Numbers) else cls(*columns(tuple(numbers)))

    @property
    def columns(self) -> Columns:
        """What they are made of, as JSON."""
        values, lows, highs = map(_plain, (self.values, self.lows, self.highs))
        why = {str(place): reason for place, reason in self.reasons.items()}
        return self.headings.text, values, [lows, highs], self.pattern.text, why

    def value(self, place: int) -> float | None:
        """One value, None where there is none."""
        value = self.values[place]
        return None if math.isnan(value) else value

    def ends(self, place: int) -> tuple[float | None, float | None]:
        """The ends of one interval."""
        low, high = self.lows[place], self.highs[place]
        return None if math.isnan(low) else low, None if math.isnan(high) else high

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, place: int) -> MetricValue: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[MetricValue]: ...
    def __getitem__(self, place: int | slice) -> MetricValue | Sequence[MetricValue]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        place = range(len(self))[place]
        heading, counted = self.headings[place], self.pattern
        ci = None
        if heading.method is not None:
            low, high = self.lows[place], self.highs[place]
            ci = Interval.model_construct(low=low, high=high, level=heading.level, method=heading.method)
        return MetricValue.model_construct(
            id=heading.id,
            version=heading.version,
            domain=heading.domain,
            value=self.value(place),
            null_reason=self.reasons.get(place),
            unit=heading.unit,
            higher_is_better=heading.higher_is_better,
            n=counted.n[place],
            repeats=counted.repeats[place],
            ci=ci,
            params=dict(heading.params),
            trained_k=counted.trained_k[place],
        )

    def __iter__(self) -> Iterator[MetricValue]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Numbers | tuple | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Numbers{tuple(self)!r}"


Columns = tuple[str, list[float | None], list[list[float | None]], str, dict[str, str]]


def columns(numbers: Sequence[MetricValue]) -> Columns:
    """The numbers as JSON: headings, values, ends of intervals, what was counted, and why values are null."""
    titles = [
        (
            m.id,
            m.version,
            m.domain,
            m.unit,
            m.higher_is_better,
            m.params,
            *((m.ci.level, m.ci.method) if m.ci else (None, None)),
        )
        for m in numbers
    ]
    counted = ([m.n for m in numbers], [m.repeats for m in numbers], [m.trained_k for m in numbers])
    return (
        _text(titles),
        [m.value for m in numbers],
        [[m.ci.low if m.ci else None for m in numbers], [m.ci.high if m.ci else None for m in numbers]],
        _text(counted),
        {str(place): m.null_reason for place, m in enumerate(numbers) if m.null_reason is not None},
    )


class AsNumbers:
    """Marks a field of a model whose numbers are kept as columns and written as a list."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        listed = handler.generate_schema(tuple[MetricValue, ...])
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_after_validator_function(Numbers.of, listed),
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(Numbers), listed]),
            serialization=core_schema.wrap_serializer_function_ser_schema(_written, schema=listed),
        )


def _written(value: Sequence[MetricValue], handler: Callable[[tuple[MetricValue, ...]], Json]) -> Json:
    return handler(tuple(value))


def _text(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _column(values: Sequence[float | None]) -> array[float]:
    return array("d", [math.nan if value is None else value for value in values])


def _plain(column: array[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in column]
