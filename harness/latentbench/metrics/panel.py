"""What a metric wants seen on the page of its cell, as data: the page draws it, so that no metric writes HTML.

A study that leaves `details` overrides `Metric.panels`; all texts in a panel stay text, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from latentbench.core.spec_model import Json


@dataclass(frozen=True)
class TableData:
    """Rows under headings; numbers are shown with four digits, None as a dash."""

    head: Sequence[str]
    rows: Sequence[Sequence[Json]]


@dataclass(frozen=True)
class CurveData:
    """Curves by name, each as (x, y); None leaves a gap."""

    curves: Mapping[str, tuple[Sequence[Json], Sequence[Json]]]
    x: str
    y: str
    """What the axes show, with units."""


@dataclass(frozen=True)
class PointData:
    """One point per name, each as (x, y)."""

    places: Mapping[str, tuple[float, float]]
    x: str
    y: str


@dataclass(frozen=True)
class BarData:
    """One bar per name, with its interval where that is known."""

    values: Mapping[str, float | None]
    y: str
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PanelData:
    """A titled part of a page."""

    title: str
    about: str
    """What is seen, in one sentence."""
    parts: Sequence[TableData | CurveData | PointData | BarData]
