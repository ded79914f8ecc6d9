"""How long the rest will take, going by what earlier records of like cells say they took. A guess, and called one.

A record counts a stage that several cells shared in full. So the cells of a group are estimated by their slowest, and
groups are added up. Other machines, other loads and other group sizes are not accounted for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentbench.execute.grouping import groups_of
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.results import RECORDS
from latentbench.section import Json
from latentbench.words import plural

Seconds = Mapping[str, float]
"""By stage of the work, as in a record's `cost.wall_seconds`."""


@dataclass(frozen=True)
class Estimate:
    """Wall-clock time until nothing is left to run."""

    seconds: float
    workers: int
    known: int
    """Cells that are like one with a record."""
    unknown: int
    """Cells of which nothing is known; they are not in `seconds`."""

    def __str__(self) -> str:
        if not self.known:
            return f"time left: unknown, no record of {'a like cell' if self.unknown == 1 else 'like cells'} yet"
        new = f"; nothing is known of {plural(self.unknown, 'further cell')}" if self.unknown else ""
        pace = plural(self.workers, "worker")
        return f"time left: about {duration(self.seconds)} with {pace}, going by records of like cells{new}"


def estimate(plan: Plan, results: Path, workers: int) -> Estimate | None:
    """The time the cells to run will take on so many workers; None when there are none."""
    if not plan.to_run:
        return None
    earlier = {name: _earlier(results, name) for name in {cell.cell.origin.name for cell in plan.to_run}}
    groups = [[_seconds(cell, earlier[cell.cell.origin.name]) for cell in g] for g in groups_of(plan.to_run, workers)]
    known = [[seconds for seconds in group if seconds is not None] for group in groups]
    slowest = [max(group) for group in known if group]
    seconds = max(sum(slowest) / workers, max(slowest, default=0.0))
    count = sum(map(len, known))
    return Estimate(seconds, workers, count, len(plan.to_run) - count)


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _earlier(results: Path, name: str) -> dict[str | None, Seconds]:
    """By label the most that any good record of a spec took for each part; under None that of all labels.

    Read as plain JSON: thousands of records would take seconds to be validated, and this is only a guess.
    """
    found: dict[str | None, dict[str, float]] = {}
    for path in (results / RECORDS / name).glob("*.json"):
        label, seconds = _told(path)
        for like in (label, None) if seconds else ():
            most = found.setdefault(like, {})
            most.update({part: max(taken, most.get(part, 0.0)) for part, taken in seconds.items()})
    return dict(found)


def _told(path: Path) -> tuple[str, Seconds]:
    try:
        record: Json = json.loads(path.read_bytes())
        seconds = {str(part): float(taken) for part, taken in record["cost"]["wall_seconds"].items()}
        return str(record["label"]), seconds if record["status"] == "ok" else {}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "", {}  # an unreadable record tells nothing


def _seconds(cell: PlannedCell, earlier: Mapping[str | None, Seconds]) -> float | None:
    like = earlier.get(cell.cell.label) or earlier.get(None)
    if like is None:
        return None
    trains = any(step.run and step.stage.kind == "sae" for step in cell.steps)
    return sum(taken for part, taken in like.items() if trains or part != "train")
