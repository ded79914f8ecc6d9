"""Which points of a sweep are on the frontier, and which one is chosen: against what the words say, point by point."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.core.errors import InvalidInput
from latentbench.steering.sweep_points import SweepPoint, chosen_point, is_allowed, on_frontier

FEW = st.one_of(st.none(), st.sampled_from([-0.5, 0.0, 0.1, 0.25, 0.5]))
"""Few values, so that many points agree in some of them."""
POINTS = st.lists(
    st.builds(
        SweepPoint,
        layer=st.one_of(st.none(), st.integers(0, 3)),
        strength=st.sampled_from([-0.4, 0.1, 0.2, 0.4]),
        gain=FEW,
        low=FEW,
        high=st.none(),
        cost=FEW,
    ),
    max_size=12,
)


def beats(one: SweepPoint, other: SweepPoint) -> bool:
    """Whether a point gains at least as much for at most as much, and one of them is strict."""
    assert one.gain is not None
    assert one.cost is not None
    assert other.gain is not None
    assert other.cost is not None
    gain, cost = Fraction(one.gain) - Fraction(other.gain), Fraction(other.cost) - Fraction(one.cost)
    return gain >= 0 and cost >= 0 and gain + cost > 0


@given(POINTS)
def test_the_frontier_holds_what_no_other_point_beats(points: list[SweepPoint]) -> None:
    known = [p for p in points if p.gain is not None and p.cost is not None]
    expected = tuple(p in known and not any(beats(other, p) for other in known) for p in points)
    assert on_frontier(points) == expected
    assert any(expected) == bool(known)


@given(POINTS, st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.3])))
def test_the_chosen_point_is_the_first_by_the_rule(points: list[SweepPoint], most: float | None) -> None:
    allowed = [p for p in points if is_allowed(p, most)]
    if not allowed:
        with pytest.raises(InvalidInput, match="auto: "):
            chosen_point(points, most)
        return
    chosen = points[chosen_point(points, most)]
    assert chosen in allowed
    assert most is None or (chosen.cost is not None and chosen.cost <= most)
    bounds = [p.low for p in allowed if p.low is not None]
    gains = [p.gain for p in allowed if p.gain is not None]
    equal = [p for p in allowed if (p.low == max(bounds) if bounds else p.gain == max(gains))]
    assert chosen in equal
    assert abs(chosen.strength or 0) == min(abs(p.strength or 0) for p in equal)
    weakest = [p for p in equal if abs(p.strength or 0) == abs(chosen.strength or 0)]
    assert chosen.cost == min(p.cost for p in weakest if p.cost is not None)
    assert (chosen.layer or 0) == min(p.layer or 0 for p in weakest if p.cost == chosen.cost)


@given(POINTS.filter(lambda points: any(is_allowed(p, None) for p in points)), st.randoms())
def test_the_order_of_points_does_not_matter(points: list[SweepPoint], random: object) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    here, there = points[chosen_point(points, None)], shuffled[chosen_point(shuffled, None)]
    assert (here.low, abs(here.strength or 0), here.cost, here.layer or 0) == (
        there.low,
        abs(there.strength or 0),
        there.cost,
        there.layer or 0,
    )


POINT = SweepPoint(layer=1, strength=0.2, gain=0.3, low=0.1, high=0.5, cost=0.2)


def test_a_certain_gain_is_taken_before_a_large_one() -> None:
    lucky = replace(POINT, gain=0.9, low=0.05)
    assert chosen_point([lucky, POINT], None) == 1


def test_of_equal_gains_the_smaller_dose_is_taken_whatever_its_sign() -> None:
    assert (
        chosen_point([POINT, replace(POINT, strength=-0.1, cost=0.9), replace(POINT, strength=0.4, cost=0.0)], None)
        == 1
    )


def test_what_costs_too_much_is_named_with_the_cheapest() -> None:
    with pytest.raises(InvalidInput, match=r"none of 2 points costs at most 0.1 nats per token, the cheapest 0.2"):
        chosen_point([POINT, replace(POINT, cost=0.5)], 0.1)
    with pytest.raises(InvalidInput, match="none has both a gain and a cost that are finite"):
        chosen_point([replace(POINT, cost=None)], None)
