"""The points of a sweep: what each gained and cost on selection data, which are on the frontier, and which one is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json


@dataclass(frozen=True)
class SweepPoint:
    """A layer and a strength that were tried. Numbers are None where they are not finite."""

    layer: int | None
    """The block; None where the layers are stated."""
    strength: float | None
    """The dose or scale; None where it is stated."""
    gain: float | None
    """Over the model without steering; more is better, whatever the direction of the number behind it."""
    low: float | None
    """Lower end of its 95 % interval; None for fewer than 10 units."""
    high: float | None
    """Upper end."""
    cost: float | None
    """Nats per token on the texts of the cost."""

    def plain(self) -> dict[str, Json]:
        """As JSON data."""
        return asdict(self)


def on_frontier(points: Sequence[SweepPoint]) -> tuple[bool, ...]:
    """Whether each point is on the frontier: no other one gains as much for less, or more for no more.

    Points without a gain or a cost are not; of points that agree in both all are.
    """
    known = [(p.cost, -p.gain) for p in points if p.cost is not None and p.gain is not None]
    best, front = math.inf, set[tuple[float, float]]()
    for cost, loss in sorted(set(known)):  # from the cheapest on, the more gain first
        if loss < best:
            front.add((cost, loss))
            best = loss
    return tuple(p.cost is not None and p.gain is not None and (p.cost, -p.gain) in front for p in points)


def chosen_point(points: Sequence[SweepPoint], most: float | None) -> int:
    """The number of the point with the highest lower end of its gain's interval among those that cost at most `most`.

    Of equal ones the one with the smallest strength, then the cheapest, then the lowest layer. Where no point has an
    interval, for want of units, the gain itself takes its place. Raises InvalidInput where none is left to choose from.
    """
    allowed = [number for number, point in enumerate(points) if is_allowed(point, most)]
    if not allowed:
        raise InvalidInput(_why_none(points, most))
    bounded = any(points[number].low is not None for number in allowed)

    def rank(number: int) -> tuple[float, float, float, float]:
        point = points[number]
        gain = point.low if bounded else point.gain
        assert point.cost is not None  # what is allowed has one
        return (math.inf if gain is None else -gain, abs(point.strength or 0.0), point.cost, float(point.layer or 0))

    return min(allowed, key=rank)


def is_allowed(point: SweepPoint, most: float | None) -> bool:
    """Whether a point can be chosen: its gain and its cost are known, and the cost is at most `most`."""
    return point.gain is not None and point.cost is not None and (most is None or point.cost <= most)


def _why_none(points: Sequence[SweepPoint], most: float | None) -> str:
    costs = [point.cost for point in points if point.cost is not None and point.gain is not None]
    if not costs:
        return f"auto: of {len(points)} points none has both a gain and a cost that are finite; try smaller doses or scales"
    return (
        f"auto: none of {len(points)} points costs at most {most:g} nats per token, the cheapest {min(costs):.4g}; try smaller "
        "doses or scales, or raise `max_cost`"
    )
