"""The `flow:` section, neighbouring sites, and what is refused, all without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.flow.metrics import FlowTransition
from latentbench.flow.options import Flow, Thresholds, unfoldable
from latentbench.flow.steering_method import FlowMethod
from latentbench.flow.steering_metric import FlowSteering
from latentbench.flow.topology import Link, depth, links, residual_sites, untraceable
from latentbench.spec.experiment import Experiment
from latentbench.steering.baselines import StackMethod

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
    assert said in " ".join(untraceable(sites))


def test_consecutive_sites_have_no_problem() -> None:
    assert untraceable([R0, R1, R2, M1, A1]) == ()


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


SPEC: dict[str, Any] = {
    "model": {"adapter": "pocket"},
    "layers": [{"index": 0}, {"index": 1, "point": "mlp_out"}, {"index": 1}, {"index": 2}],
    "dataset": {
        "eval": {
            name: {"adapter": "pocket", "domain": name, "split": "eval", "documents": 4, "context": 40}
            for name in ("general", "chemistry")
        }
    },
    "sae": {"variant": "topk", "width": 48, "k": 8},
    "metrics": [{"metric": "flow_matching"}],
}
AIM = {"target": "chemistry"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": ["1:999"]}, "1:999: the SAE at 1.resid_post has the latents 0 to 47"),
        ({"seeds": ["5:3"]}, "there is no SAE at 5.resid_post; there are 0.resid_post, 1.resid_post, 2.resid_post"),
        ({"seeds": ["1.resid_pre:3"]}, "no SAE at 1.resid_pre"),
        ({"layer": 9}, "layer 9: no SAE reads"),
        ({"span": [7, 9]}, "span 7 to 9: no SAE reads"),
        ({"fold": "threshold"}, "the topk SAE at 0.resid_post has no positive thresholds"),
        ({"seeds": ["1:47"], "layer": 2, "span": [2, 9], "fold": "none"}, ""),
    ],
)
def test_steering_that_has_no_place_here_is_refused(options: dict[str, Any], said: str) -> None:
    experiment = Experiment.model_validate({**SPEC, "flow": {}})
    found = FlowSteering.model_validate({**AIM, **options}).problems_in(experiment, Roots(Path()))
    assert [said in message for message in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("sae", "may"),
    [
        ({"variant": "topk", "width": 48, "k": 8}, False),
        ({"variant": "random_decoder", "width": 48, "k": 8}, False),
        ({"variant": "gated", "width": 48}, False),
        ({"variant": "jumprelu", "width": 48}, True),
        ({"variant": "batch_topk", "width": 48, "k": 8}, True),
        ({"variant": "kron", "width": 48, "k": 8, "m": 2, "n": 2, "selection": "batch_topk"}, False),
        ({"variant": "matryoshka", "groups": [16, 32], "width": 48, "k": 8, "selection": "topk"}, False),
        ({"variant": "fine_tuned", "base": {"variant": "topk", "width": 48, "k": 8}}, False),
        ({"variant": "fine_tuned", "k": 8, "base": {"variant": "batch_topk", "width": 48, "k": 8}}, True),
        ({"variant": "boosted", "selection": "topk", "base": {"variant": "jumprelu", "width": 48}}, False),
        ({"variant": "boosted", "base": {"variant": "jumprelu", "width": 48}}, True),
        ({"load": {"adapter": "sae_lens", "path": "exports/x"}}, True),  # its files tell
    ],
)
def test_which_variants_may_have_thresholds_to_fold(sae: dict[str, Any], may: bool) -> None:
    experiment = Experiment.model_validate({**SPEC, "flow": {}, "sae": sae})
    assert bool(list(unfoldable(experiment))) != may


def test_nothing_is_added_before_the_first_block() -> None:
    experiment = Experiment.model_validate(
        {**SPEC, "flow": {}, "layers": [{"index": 0, "point": "resid_pre"}, {"index": 0}]}
    )
    found = FlowSteering.model_validate({**AIM, "seeds": ["0.resid_pre:3"]}).problems_in(experiment, Roots(Path()))
    assert "before the first block" in " ".join(found)


@pytest.mark.parametrize("wrong", [{"seeds": ["zzz"]}, {"seeds": ["1.mlp_out:3"]}, {"span": [9, 2]}, {"span": [-1, 2]}])
def test_latents_and_spans_are_written_in_one_way(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FlowSteering.model_validate({**AIM, **wrong})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"matching": "folded"}, "the topk SAE at 0.resid_post has no positive thresholds"),
        ({"domain": "nowhere"}, "no evaluation domain nowhere (known: general, chemistry)"),
        ({"matching": "folded", "fold": "activation", "domain": "chemistry"}, ""),
    ],
)
def test_a_flow_that_cannot_be_made_is_refused(options: dict[str, Any], said: str) -> None:
    flow = Flow.model_validate(options)
    experiment = Experiment.model_validate({**SPEC, "flow": options})
    assert [said in message for message in flow.problems_in(experiment, Roots(Path()))] == ([True] if said else [])
    method = FlowMethod.model_validate({"latents": ["1:3"], "matching": options})
    steered = Experiment.model_validate({**SPEC, "steering": method.plain()})
    assert [said in message for message in method.problems_in(steered, Roots(Path()))] == ([True] if said else [])
    stack = StackMethod.model_validate({"method": "stack", "parts": [{"method": "none"}, method.plain()]})
    assert stack.problems_in(steered, Roots(Path())) == method.problems_in(steered, Roots(Path()))


def test_carrying_further_than_there_are_layers_is_refused() -> None:
    experiment = Experiment.model_validate({**SPEC, "flow": {}})
    assert FlowTransition(steps=(1, 2)).problems_in(experiment, Roots(Path())) == ()
    assert "at most 2 steps" in " ".join(FlowTransition(steps=(3,)).problems_in(experiment, Roots(Path())))


def test_reading_the_sections_needs_no_torch() -> None:
    code = (
        "import sys, latentbench.flow.options, latentbench.flow.metrics, latentbench.flow.metrics, "
        "latentbench.flow.metrics, latentbench.flow.metrics, latentbench.flow.steering_metric\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'networkx', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
