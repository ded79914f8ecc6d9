"""A steered cell, the rows of its spec that it is compared with, and the vectors that it adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from latentbench.core.errors import LatentbenchError
from latentbench.core.spec_model import Json
from latentbench.leaderboard.evidence import StatisticsReader
from latentbench.leaderboard.load import LoadedRecord
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.report.cells import stored_study
from latentbench.report.frontier import Rows, rows_beside
from latentbench.steering.build import INVERSE_LENGTHS, by_layer, parted
from latentbench.steering.method import parsed_method
from latentbench.store.store import Store
from latentbench.study.context import Content
from latentbench.study.storage import stored_content


@dataclass(frozen=True)
class Panel:
    """A titled part of the page."""

    title: str
    about: str
    """What is seen, in one sentence."""
    body: Markup
    """Made by this package; text from elsewhere in it is escaped."""
    wide: bool = False
    """Whether it takes the whole width of the page."""


@dataclass(frozen=True)
class LayerVector:
    """A vector that a cell adds behind one block."""

    layer: int
    norm: float
    """Length of the vector as it was made."""
    added: float
    """Length of what is added: the vector times its scale, or as long as the stated dose or fraction makes it."""
    residual: float | None
    """Mean length of the residual stream there, where the method knew it."""


@dataclass(frozen=True)
class SteeredCell:
    """A steered cell and what is stored of it."""

    record: Record
    store: Store
    results: Path

    @cached_property
    def rows(self) -> Rows:
        """The cell and what it is compared with, by label."""
        return rows_beside(self.record, self.results)

    @cached_property
    def source(self) -> StatisticsReader:
        """Statistics of the cell and of those rows, each read once."""
        return StatisticsReader()

    @property
    def loaded(self) -> LoadedRecord:
        """The cell's record as it lies among the results."""
        return next(iter(self.rows.values()))

    @cached_property
    def method(self) -> Any:
        """What steers, at the point that was chosen for it where something was `auto` and that is in the store; None where this
        installation does not know it."""
        method, content = method_of(self.record), self._content
        return method if method is None or content is None else method.settled(content)

    @cached_property
    def vectors(self) -> tuple[LayerVector, ...]:
        """The vectors that it adds, those of a stack part by part; none where they are not in the store."""
        return tuple(_vectors(self.method, self._content)) if self.method is not None and self._content else ()

    @property
    def scale(self) -> float | None:
        """The spec's own scale; None where it has none, or one that nobody knows any more was chosen."""
        scale = getattr(self.method, "scale", None)
        return float(scale) if isinstance(scale, int | float) else None

    @cached_property
    def _content(self) -> Content | None:
        """What making the vectors left; None where it is not in the store."""
        key = self.record.keys.get("subject")
        return stored_content(self.store, "subject", key) if key else None

    def beside(self, record: Record) -> SteeredCell:
        """Another row of the spec, seen in the same way."""
        return SteeredCell(record, self.store, self.results)

    def details(self, study: str) -> dict[str, Json] | None:
        """What a study left for reports; None where it was not asked for or is not in the store."""
        found = stored_study(self.store, self.record, study)
        return dict(found.details) if found else None

    def tasks(self) -> list[str]:
        """The tasks that accuracy was measured on."""
        start = "study/reasoning_accuracy/"
        return [name.removeprefix(start) for name in self.record.keys if name.startswith(start)]

    def subject(self) -> dict[str, Json]:
        """What making the vectors left beside them; empty when it is not in the store."""
        return dict(self._content.meta) if self._content else {}

    def values(self, prefix: str) -> list[MetricValue]:
        """The record's numbers of one metric."""
        return [value for value in self.record.metrics if value.id.startswith(prefix + ".")]


def method_of(record: Record) -> Any:
    """The steering method of a record; None where it steers by nothing, or by what this installation cannot read."""
    try:
        return parsed_method(record.resolved.get("steering"))
    except (LatentbenchError, ValidationError):
        return None


def _vectors(method: Any, content: Content) -> Iterator[LayerVector]:
    if parts := getattr(method, "parts", ()):
        for part, own in zip(parts, parted(content), strict=True):
            yield from _vectors(part, own)
    elif method.adds_vectors:
        residual, inverse = (content.meta.get(name) or {} for name in ("residual_norms", INVERSE_LENGTHS))
        for layer, vector in sorted(by_layer(content).items()):
            norm, mean = float(vector.norm()), residual.get(str(layer))
            yield LayerVector(layer, norm, _added(method, norm, mean, inverse.get(str(layer))), mean)


def _added(method: Any, norm: float, residual: float | None, inverse: float | None) -> float:
    """Length of what is added of a vector: see `VectorInjection` and `at_dose`."""
    if method.dose is not None and inverse:
        return abs(float(method.dose)) / inverse
    return abs(float(method.scale)) * (residual if method.relative and residual else norm)
