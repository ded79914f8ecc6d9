"""What a steering page concludes from a gain and its controls, and which rows are controls."""

from __future__ import annotations

from typing import Any

import pytest

from latentbench.metrics.base import Role
from latentbench.metrics.panel import BarData, CurveData, PanelData, PointData, TableData
from latentbench.metrics.value import Interval, MetricValue
from latentbench.report.contributed_panels import drawn
from latentbench.report.steered_cell import LayerVector
from latentbench.report.verdict import AgainstControl, Judged, compared_sizes, layers_text
from latentbench.report.verdict_text import gain_sentence, headline
from latentbench.statistics.paired import Difference, TestResult
from latentbench.steering.choice import SteeringChoice
from latentbench.steering.method import parsed_method
from tests.support.browser import HOSTILE

PROBLEMS = {"adapter": "pocket", "split": "train"}
RANDOM = {"method": "random", "norm": 1.0}
CONTRASTIVE = {"method": "contrastive", "problems": PROBLEMS, "positive": ["a"], "negative": ["b"]}
GAIN = Role("gain", "accuracy")


def number(value: float | None, low: float | None = None, high: float | None = None, **more: Any) -> MetricValue:
    ci = None if low is None or high is None else Interval(low=low, high=high, method="problem bootstrap")
    fields = {"id": "x.gain", "version": 1, "domain": "sums", "unit": "fraction", "higher_is_better": True, "n": 40}
    return MetricValue(value=value, ci=ci, **{**fields, **more})


def control(kind: str, difference: float, p: float | None) -> AgainstControl:
    found = Difference(difference, difference - 0.1, difference + 0.1, TestResult(p))
    return AgainstControl(kind, kind, "", number(0.0), found, p)


def gain(value: MetricValue, *controls: AgainstControl) -> Judged:
    return Judged(value, GAIN, "problems", None, controls)


@pytest.mark.parametrize(
    ("made", "concluded"),
    [
        (gain(number(0.2, 0.1, 0.3)), "A gain in accuracy on sums, and no control to hold it against"),
        (gain(number(0.2, 0.1, 0.3), control("noise", 0.2, 0.01)), "A gain in accuracy on sums, more than that of noise"),
        (
            gain(number(0.2, 0.1, 0.3), control("noise", 0.2, 0.01), control("a word", 0.05, 0.4)),
            "A gain in accuracy on sums, not to be told from that of a word",
        ),
        (
            gain(number(0.2, 0.1, 0.3), control("noise", 0.2, 0.01), control("a word", -0.3, 0.01)),
            "A gain in accuracy on sums, less than that of a word",
        ),
        (gain(number(0.2, -0.1, 0.3), control("noise", 0.2, 0.01)), "No gain in accuracy on sums can be told"),
        (gain(number(-0.2, -0.3, -0.1), control("noise", 0.2, 0.01)), "A loss in accuracy on sums"),
        (gain(number(0.9)), "No gain in accuracy on sums can be told"),
        (gain(number(-0.2, -0.3, -0.1, higher_is_better=False)), "A gain in accuracy on sums, and no control to hold it against"),
    ],
)  # fmt: skip
def test_nothing_is_concluded_beyond_intervals_and_controls(made: Judged, concluded: str) -> None:
    assert headline(made) == concluded


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (number(0.2, 0.1, 0.3), "Steering gains 20.0 points in accuracy on sums (95 % interval 10.0 to 30.0, 40 problems)."),
        (number(-0.2, -0.3, -0.1), "Steering loses 20.0 points in accuracy on sums (95 % interval −30.0 to −10.0, 40 problems)."),
        (number(0.0, -0.1, 0.1), "No gain in accuracy on sums can be told: +0.0 points (95 % interval −10.0 to 10.0, 40 problems)."),
        (number(0.9, n=9), "Accuracy on sums changes by +90.0 points; 9 problems are too few to tell a gain from chance."),
        (number(None, null_reason="no answers"), "The gain in accuracy on sums is not known: no answers."),
    ],
)  # fmt: skip
def test_a_gain_is_said_with_what_it_rests_on(value: MetricValue, said: str) -> None:
    assert gain_sentence(gain(value)) == said


@pytest.mark.parametrize(
    ("steering", "kind"),
    [
        (RANDOM, "random vectors"),
        ({"method": "prefix", "text": " To"}, "the prefix “ To” in place of a vector"),
        ({"method": "rl", "problems": PROBLEMS, "reward": "random", "selection": 0}, "training with a random reward"),
        ({"method": "rl", "problems": PROBLEMS}, None),
        ({"method": "none"}, None),
        (CONTRASTIVE, None),
        ({"method": "stack", "parts": [RANDOM, RANDOM]}, "random vectors"),
        ({"method": "stack", "parts": [RANDOM, CONTRASTIVE]}, None),
        ({"method": "ablate", "directions": [RANDOM]}, "random directions"),
        ({"method": "ablate", "directions": [RANDOM, CONTRASTIVE]}, None),
        ({"method": "conditional", "part": RANDOM, "when": {"latent": 1, "above": 0}}, "random vectors"),
    ],
)
def test_a_method_says_what_it_is_a_control_by(steering: dict[str, Any], kind: str | None) -> None:
    assert parsed_method(steering).control == kind


def vectors(**added: float) -> list[LayerVector]:
    return [LayerVector(int(layer[1:]), 1.0, size, None) for layer, size in added.items()]


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (vectors(_1=2.0, _3=8.0), "of 1.00 times the length at the same layers"),
        (vectors(_1=1.0, _3=16.0), "of 0.50 to 2.00 times the length at the same layers"),
        (vectors(_3=8.0), "at layer 3 and not layers 1, 3"),
        ([], ""),
    ],
)
def test_vectors_of_a_control_are_held_against_the_cells_own(theirs: list[LayerVector], said: str) -> None:
    assert compared_sizes(vectors(_1=2.0, _3=8.0), theirs) == said


def test_layers_in_words() -> None:
    assert [layers_text(layers) for layers in ([3], [2, 3, 4], [1, 4])] == ["layer 3", "layers 2 to 4", "layers 1, 4"]


@pytest.mark.parametrize(
    "part",
    [
        TableData((HOSTILE,), ((HOSTILE,), (None,), (0.123456,))),
        CurveData({HOSTILE: ([1], [2])}, HOSTILE, HOSTILE),
        PointData({HOSTILE: (1.0, 2.0)}, HOSTILE, HOSTILE),
        BarData({HOSTILE: 1.0}, HOSTILE),
    ],
)
def test_what_metrics_want_seen_stays_text(part: Any) -> None:
    made = drawn(PanelData(HOSTILE, "about", (part,)), part)
    assert "<img" not in made
    assert made.count("</script>") == made.count("<script")


def test_points_that_were_tried_are_drawn_and_the_chosen_one_is_named() -> None:
    numbers = ((0.1, 0.0, 0.2, 0.5), (0.3, 0.1, 0.4, 0.1), (None, None, None, None))
    points = [
        {"layer": 3, "strength": s, "gain": g, "low": low, "high": high, "cost": c, "frontier": c == 0.1, "allowed": c == 0.1}
        for s, (g, low, high, c) in enumerate(numbers)
    ]  # fmt: skip
    details = {"points": points, "chosen": 1, "strength": "dose", "rule": {"number": "x.gain"}}
    (panel,) = SteeringChoice().panels(details)
    places, table = panel.parts
    assert isinstance(places, PointData)
    assert places.places == {"layer 3, dose 1": (0.1, 0.3)}, "what is on the frontier"
    assert isinstance(table, TableData)
    assert [row[-1] for row in table.rows] == ["costs too much", "chosen", "costs too much"]
    assert [row[1:5] for row in table.rows] == list(numbers)
    assert list(SteeringChoice().panels({})) == [], "of a record of an earlier version"


def test_numbers_of_a_table_have_four_digits() -> None:
    table = TableData(("row", "number", "yes"), (("a", 0.123456, True), ("b", None, False)))
    made = drawn(PanelData("Mine", "about", (table,)), table)
    assert "<div>0.1235</div>" in made
    assert "<div>–</div>" in made
    assert "<div>True</div>" in made
