"""The `flow:` section, neighbouring sites, and what is refused, all without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from harness.activations.site import Site
from harness.flow.options import Flow, Thresholds
from harness.flow.places import Link, depth, links, problems, residual_sites
from harness.metrics.flow.steering import FlowSteering

R0, R1, R2 = (Site(index=i) for i in range(3))
M1, A1 = Site(index=1, point="mlp_out"), Site(index=1, point="attn_out")


def test_every_residual_site_follows_the_one_before_and_the_parts_of_its_own_block() -> None:
    found = links([M1, R2, R0, A1, R1])
    assert found == (Link(R0, R1), Link(M1, R1), Link(A1, R1), Link(R1, R2))
    assert [link.part for link in found] == ["residual", "mlp", "attention", "residual"]


def test_what_enters_a_block_stands_where_the_block_before_left_it() -> None:
    entering = Site(index=1, point="resid_pre")
    assert depth(entering) == depth(R0)
    assert residual_sites([R1, entering]) == [entering, R1]
    assert links([entering, R1, M1]) == (Link(entering, R1), Link(M1, R1))


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ([R0], "two layers"),
        ([R0, M1], "two layers"),
        ([R0, R1, Site(index=5, point="mlp_out")], "5.mlp_out has no residual stream behind"),
        ([R0, Site(index=1, point="resid_pre"), R1], "same residual stream"),
    ],
)
def test_sites_that_cannot_be_traced_are_named(sites: list[Site], said: str) -> None:
    assert said in " ".join(problems(sites))


def test_consecutive_sites_have_no_problem() -> None:
    assert problems([R0, R1, R2, M1, A1]) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"matching": "permutation", "k": 2},
        {"matching": "random", "k": 6},
        {"matching": "cosine", "fold": "threshold"},
        {"matching": "folded", "fold": "none"},
        {"matching": "nearest"},
        {"thresholds": {"cut": 1.5}},
        {"thresholds": {"chance": 0}},
        {"k": 0},
    ],
)
def test_sections_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Flow.model_validate(wrong)


def test_folding_follows_the_matching() -> None:
    assert Flow(matching="folded").folding == "threshold"
    assert Flow(matching="permutation").folding == "none"
    assert Flow(matching="cosine").folding == "none"
    assert not Flow(matching="folded").reads_tokens
    assert Flow(matching="folded", fold="activation").reads_tokens
    assert Flow(matching="pearson").reads_tokens


def test_high_values_can_differ_by_layer() -> None:
    thresholds = Thresholds.model_validate({"residual": 0.6, "layers": {3: {"residual": 0.7}}})
    assert thresholds.at(2).residual == 0.6
    assert (thresholds.at(3).residual, thresholds.at(3).module) == (0.7, 0.25)


def test_removing_has_no_linear_schedule() -> None:
    with pytest.raises(ValidationError, match="no schedule linear"):
        FlowSteering(target="chemistry", action="deactivate", schedules=("single", "linear"))


def test_every_setting_of_a_steering_study_has_its_own_numbers() -> None:
    study = FlowSteering(target="chemistry", strengths=(1, 2), schedules=("single", "constant"))
    numbers = study.numbers()
    assert len({(n.id, tuple(sorted(n.params.items()))) for n in numbers}) == len(numbers)
    assert len(numbers) == 1 + 4 * 4


def test_reading_the_sections_needs_no_torch() -> None:
    code = (
        "import sys, harness.flow.options, harness.metrics.flow.matching, harness.metrics.flow.agreement, "
        "harness.metrics.flow.transition, harness.metrics.flow.deactivation, harness.metrics.flow.steering\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'networkx', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
