"""Steering along flow graphs: the classifier, the judge, and what is measured per prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from latentbench.autointerp.lexical_judge import LexicalJudge
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from latentbench.flow.metrics import FlowDeactivation, FlowTransition
from latentbench.flow.options import Flow
from latentbench.flow.steering_metric import FlowSteering, rate_at
from latentbench.flow.text_scores import DomainClassifier, rated
from latentbench.metrics.values import metric_values
from latentbench.study.context import StageContext
from tests.support.flow import maps_of
from tests.support.flow_studies import experiment, numbers, pocket, studying

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageContext]:
    with torch.no_grad():
        yield studying(pocket(), tmp_path_factory.mktemp("lab"))


def test_the_classifier_is_multinomial_naive_bayes() -> None:
    naive_bayes = pytest.importorskip("sklearn.naive_bayes")
    rng = np.random.default_rng(0)
    texts = {name: [rng.integers(low, low + 30, 20) for _ in range(15)] for name, low in (("a", 0), ("b", 15))}
    made = DomainClassifier.trained(texts, 50)
    counts = np.array([np.bincount(t, minlength=50) for domain in texts.values() for t in domain])
    reference = naive_bayes.MultinomialNB(fit_prior=False).fit(counts, ["a"] * 15 + ["b"] * 15)
    fresh = [rng.integers(0, 45, 12) for _ in range(200)]
    wanted = reference.predict([np.bincount(t, minlength=50) for t in fresh])
    assert [made.classify(text) for text in fresh] == list(wanted)
    accuracy, texts_in_all = made.accuracy({name: list(found) for name, found in texts.items()})
    assert accuracy == pytest.approx(reference.score(counts, ["a"] * 15 + ["b"] * 15))
    assert texts_in_all == 30


class NumberJudge(Judge):
    """Says what it is told to."""

    adapter: Literal["number"] = "number"
    replies: tuple[str, ...]

    def identity(self, roots: Roots) -> Any:
        return {"replies": self.replies}

    def chat(self, requests: Sequence[Any], roots: Roots, cache: Path) -> Iterator[Reply]:
        assert all("<text>" in request[1]["content"] for request in requests)
        for number in range(len(requests)):
            said = self.replies[number % len(self.replies)]
            yield Reply(None, "no connection") if said == "fail" else Reply(said)


def test_a_judges_answers_become_scores_or_are_left_out(tmp_path: Path) -> None:
    judge = NumberJudge(replies=("5", "Score: 2.", "fail", "nine", "3/5", "0"))
    found = rated(["t"] * 6, "law", judge, Roots(tmp_path), tmp_path, remove=False)
    assert found["judged"].tolist() == [1, 1, 0, 0, 1, 1]
    np.testing.assert_allclose(found["behaviour"], [1, 0.4, 0, 0, 0.6, 0])
    np.testing.assert_allclose(found["total"], [1, 0.16, 0, 0, 0.36, 0])
    removed = rated(["t"] * 6, "law", judge, Roots(tmp_path), tmp_path, remove=True)
    np.testing.assert_allclose(removed["total"], [0, 0.24, 0, 0, 0.24, 0])


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("4", 4), (" 3.", 3), ("**3**", 3), ("4/5", 4), ("4 / 5", 4), ("2 out of 5.", 2), ("4 out of a possible 5", 4),
        ("On a scale of 0 to 5, I rate it 4", 4), ("On a scale from 0 (none) to 5 (all): 3", 3), ("0-5: 2", 2),
        ("I would give this text a 5.", 5), ("Rating: 3, because 2 sentences are off", 3), ("Score (0–5): 1", 1),
        ("4. The text names 2 elements and 1 acid.", 4), ("3\n\nIt has 12 words.", 3), ("0 means none; I say 1", 1),
        ("The score is 2. Had it been longer, a score of 4.", 4), ("Coherence score = 0", 0),
        ("4.5", None), ("7", None), ("-1", None), ("10/10", None), ("nine", None), ("", None), ("2024", None),
        ("I rate it 9", None), ("GPT4", None),
    ],
)  # fmt: skip
def test_the_number_of_an_answer_is_found(said: str, score: int | None, tmp_path: Path) -> None:
    found = rated(["t"], "law", NumberJudge(replies=(said,)), Roots(tmp_path), tmp_path, remove=False)
    assert found["judged"].tolist() == [score is not None]
    assert found["behaviour"].tolist() == [(score or 0) / 5]


def test_steering_is_measured_per_prompt(lab: StageContext) -> None:
    study = FlowSteering(
        target="chemistry", start="general", strengths=(0.0, 3.0), schedules=("single", "constant", "random"),
        prompts=4, prompt_tokens=4, tokens=6, select=2,
    )  # fmt: skip
    study = study.model_copy(update={"judge": NumberJudge(replies=("4",))})
    found = study.run(lab)
    assert list(found.statistics) == ["general"]
    statistics = found.statistics["general"]
    assert {len(values) for values in statistics.values()} == {4}
    for way in ("single", "constant", "random"):  # nothing added: the same texts and the same loss
        for name in ("target", "loss", "text_loss"):
            np.testing.assert_array_equal(
                statistics[f"flow_steering.{way}=0.{name}"], statistics[f"flow_steering.base.{name}"]
            )
        assert (statistics[f"flow_steering.{way}=3.loss"] != statistics["flow_steering.base.loss"]).all()
    values = numbers(study, found)
    assert all(value is not None for value in values.values())
    again = study.run(lab)
    assert again.details["settings"] == found.details["settings"]
    receipt = found.details["settings"]["constant=3"]["receipt"]
    assert receipt["steered"] == receipt["tokens"] > 0
    assert len(found.details["seeds"]) == 2


@given(
    points=st.lists(
        st.tuples(st.floats(0.0, 1.0), st.floats(0.01, 5.0)), min_size=2, max_size=6, unique_by=lambda p: p[1]
    ),
    cost=st.floats(0.01, 5.0),
)
def test_the_rate_at_a_cost_lies_on_the_line_between_strengths(points: list[tuple[float, float]], cost: float) -> None:
    texts, predictions, base = 64.0, 500.0, 700.0
    sums = [number for rate, rise in points for number in (rate * texts, base + rise * predictions)]
    found = rate_at(cost, *np.array([[base, predictions, texts, *sums]] * 2).T)
    rises = sorted(rise for _, rise in points)
    # Rounding in sums of several hundred moves points by some 1e-13.
    assume(all(abs(cost - rise) > 1e-9 for rise in rises) and min(np.diff(rises)) > 1e-6)
    by_cost = sorted((rise, rate) for rate, rise in points)
    inside = rises[0] < cost < rises[-1]
    expected = np.interp(cost, *zip(*by_cost, strict=True)) if inside else np.nan
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6, atol=1e-6)


def test_schedules_are_compared_at_a_cost(lab: StageContext) -> None:
    study = FlowSteering(
        target="chemistry", start="general", strengths=(0.5, 2.0, 6.0), schedules=("single", "constant"),
        prompts=4, prompt_tokens=4, tokens=6, select=2, costs=(1e-9, 1e9),
    )  # fmt: skip
    found = study.run(lab)
    values = metric_values([study], found.statistics)
    compared = [value for value in values if "cost" in value.params]
    assert {value.null_reason for value in compared} == {
        f"no two strengths cost less and more than {cost} nats per token" for cost in ("1e-09", "1e+09")
    }
    rises = {
        way: [
            v.value for v in values if v.id == "flow_steering.loss_increase" and v.params["schedule"] == way and v.value
        ]
        for way in ("single", "constant")
    }
    between = (max(map(min, rises.values())) + min(map(max, rises.values()))) / 2
    at = {
        (v.id, v.params["schedule"]): v.value
        for v in metric_values([study.model_copy(update={"costs": (between,)})], found.statistics)
        if "cost" in v.params
    }
    rate, gain = "flow_steering.rate_at_cost", "flow_steering.gain_at_cost"
    assert at.keys() == {(rate, "single"), (rate, "constant"), (gain, "constant")}
    constant, single = (at[rate, way] for way in ("constant", "single"))
    assert constant is not None
    assert single is not None
    assert 0 <= constant <= 1
    assert at[gain, "constant"] == pytest.approx(constant - single)


def test_a_spec_without_costs_reads_as_before_there_were_any() -> None:
    assert "costs" not in FlowSteering(target="chemistry").determining()
    assert FlowSteering(target="chemistry", strengths=(1, 2), costs=(0.5,)).determining()["costs"] == [0.5]
    with pytest.raises(ValidationError, match="two strengths or more"):
        FlowSteering(target="chemistry", costs=(0.5,))


def test_removing_rescales_seeds_or_whole_graphs(lab: StageContext) -> None:
    study = FlowSteering(
        target="chemistry", action="deactivate", strengths=(1.0, -4.0), schedules=("single", "constant"),
        prompts=3, prompt_tokens=4, tokens=5, select=2,
    )  # fmt: skip
    found = study.run(lab)
    assert list(found.statistics) == ["chemistry"]
    shown = found.details["settings"]
    assert shown["single=1"]["texts"] == shown["base"]["texts"]  # r = 1 changes nothing
    assert shown["single=1"]["receipt"]["steered"] == 0
    assert shown["constant=-4"]["receipt"]["steered"] > shown["single=-4"]["receipt"]["steered"] > 0


def test_what_cannot_be_steered_is_said_before_it_is_tried() -> None:
    made = experiment()
    study = FlowSteering(target="law", judge=LexicalJudge())
    said = " ".join(study.problems_in(made, Roots(Path())))
    assert "no evaluation domain 'law'" in said
    assert "rates no texts" in said
    assert FlowSteering(target="chemistry").problems_in(made, Roots(Path())) == ()
    assert "layers [5]" in " ".join(FlowDeactivation(layers=(1, 5)).problems_in(made, Roots(Path())))
    for study in (FlowTransition(scales=("threshold",)), FlowSteering(target="chemistry", fold="threshold")):
        assert "the topk SAE at 0.resid_post has no positive thresholds" in " ".join(
            study.problems_in(made, Roots(Path()))
        )
    loneliest = FlowDeactivation(layers=(0,)).problems_in(made, Roots(Path()))
    assert "layers [0]" in " ".join(loneliest)  # the first residual site has no predecessor
    with pytest.raises(ValueError, match="at least 1"):
        FlowDeactivation.model_validate({"layers": []})


def test_controls_stand_in_for_every_latent_at_its_own_site(lab: StageContext) -> None:
    study = FlowSteering(
        target="chemistry", start="general", seeds=("1:3", "2:5"), prompts=2, prompt_tokens=4, tokens=4,
        schedules=("constant", "random", "random_constant"), strengths=(2.0,), fold="none",
    )  # fmt: skip
    found = study.run(lab)
    details = found.details
    assert details["seeds"] == ["1.resid_post:3", "2.resid_post:5"]
    known = {node for nodes in details["paths"].values() for node in nodes} | set(details["seeds"])
    assert set(details["random"]) == known
    assert not known & set(details["random"].values())
    assert len(set(details["random"].values())) == len(known)
    assert all(node.partition(":")[0] == other.partition(":")[0] for node, other in details["random"].items())
    assert details["path_lengths"] == {seed: len(nodes) for seed, nodes in details["paths"].items()}
    assert max(details["path_lengths"].values()) > 1
    settings = details["settings"]
    same = ("passes", "calls", "tokens", "steered")  # as many layers and tokens as along the seeds' own paths
    receipts = [settings[name]["receipt"] for name in ("constant=2", "random_constant=2")]
    assert [receipts[0][name] for name in same] == [receipts[1][name] for name in same]
    assert settings["random=2"]["texts"] != settings["random_constant=2"]["texts"]


def test_seeds_chosen_for_it_have_a_path(lab: StageContext) -> None:
    study = FlowSteering(target="chemistry", prompts=1, prompt_tokens=4, tokens=2, select=3)
    found = study.run(lab)
    assert len(found.details["seeds"]) == 3
    assert min(found.details["path_lengths"].values()) > 1
    assert found.warnings == ()


@pytest.mark.parametrize("action", ["activate", "deactivate"])
def test_where_nothing_matches_cumulative_numbers_are_null(lab: StageContext, action: str) -> None:
    options = Flow.model_validate({"thresholds": {"cut": 1.0, "drop": 1.0, "chance": 1}})
    maps = maps_of(lab.saes(), options)
    study = FlowSteering.model_validate(
        {"target": "chemistry", "action": action, "schedules": ["single", "constant", "random", "random_constant"],
         "prompts": 2, "prompt_tokens": 4, "tokens": 3, "select": 2}
    )  # fmt: skip
    found = study.run(replace(lab, subject=lambda: maps))
    assert any("the seeds' paths have 1, 1 latents" in warning for warning in found.warnings)
    values = [*metric_values([study], found.statistics, reasons=found.reasons)]
    null = {value.params["schedule"] for value in values if value.value is None}
    assert null == {"constant", "random_constant"}
    assert {value.null_reason for value in values if value.value is None} == {
        "nothing cumulative: no match of any seed counts, the paths have 1, 1 latents"
    }
    assert set(found.details["settings"]) == {"base", "single=1", "random=1"}


def test_texts_that_are_folded_on_are_part_of_the_question() -> None:
    made = experiment()
    other = made.model_copy(
        update={"dataset": made.dataset.model_copy(update={"train": made.dataset.eval["chemistry"]})}
    )
    for study in (FlowTransition(scales=("activation",)), FlowSteering(target="chemistry")):
        assert study.identity(made, Roots(Path())) != study.identity(other, Roots(Path()))
    for study in (FlowTransition(), FlowSteering(target="chemistry", fold="none")):
        assert study.identity(made, Roots(Path())) == study.identity(other, Roots(Path()))
