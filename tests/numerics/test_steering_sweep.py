"""What `auto` tries: each point's cost and gain as if it were measured alone, whatever a kill interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from latentbench.activations.tokens import evaluation_tokens
from latentbench.core.errors import InvalidInput
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.interventions.intervention import Untouched
from latentbench.metrics.base import Estimator, ratio
from latentbench.statistics.intervals import document_interval
from latentbench.steering import sweep_cost
from latentbench.steering.auto import SweepOptions
from latentbench.steering.baselines import RandomMethod
from latentbench.steering.capability_cost import CapabilityCost
from latentbench.steering.contrastive import ContrastiveMethod
from latentbench.steering.method import CHOSEN
from latentbench.steering.sweep import check_apart, choose, judged, measure_sweep, trials
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Findings, Study
from tests.support.labs import random_texts
from tests.support.steering import Killed, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

COST = {"metric": "capability_cost"}
DOMAINS = {"plain": random_texts(14, words=9), "wanted": random_texts(12, words=7, seed=1)}


class Texts:
    """An evaluation domain."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.documents = texts, len(texts)

    def read(self, roots: Any) -> Iterator[str]:
        return iter(self.texts)

    def model_copy(self, update: Any) -> Texts:
        return self


@pytest.fixture
def around(tmp_path: Path) -> StageContext:
    lm = language_model("llama", torch.float32)
    tokens = {name: evaluation_tokens(texts, lm.tokenizer, context=16) for name, texts in DOMAINS.items()}
    domains = {name: Texts(texts) for name, texts in DOMAINS.items()}
    experiment: Any = SimpleNamespace(
        model=SimpleNamespace(identity=lambda roots: {"hub": "a/b", "dtype": "float32"}),
        dataset=SimpleNamespace(eval=domains),
        token_rule=EVERY_TOKEN,
    )
    return replace(lab(lm, tmp_path), experiment=experiment, tokens=lambda name: tokens[name])


def method(**changes: Any) -> Any:
    options = SweepOptions.model_validate(
        {
            "gain": COST,
            "number": "capability_cost.ce_increase",
            "gain_on": "wanted",
            "layers": (0, 2),
            "doses": (0.1, -0.3),
            "scales": (0.5, 2.0),
            **changes,
        }
    )
    texts = {"positive": ("w3 w4", "w5 w6"), "negative": ("w9 w4", "w8 w6")}
    return ContrastiveMethod(**texts, layers="auto", dose="auto", auto=options)


def swept(made: Any, around: StageContext) -> tuple[Content, Content]:
    candidates = made.candidates().make(around)
    return candidates, measure_sweep(made, candidates, around)


def test_every_point_is_measured_as_if_it_stood_alone(around: StageContext) -> None:
    made = method()
    _, measured = swept(made, around)
    places = [(0, 0.1), (0, -0.3), (2, 0.1), (2, -0.3)]
    assert [(p["layer"], p["strength"]) for p in measured.meta["points"]] == places
    points = judged(made.auto, measured)
    for point, (layer, dose) in zip(points, places, strict=True):
        alone = made.model_copy(update={"layers": layer, "dose": dose, "auto": None})
        content = alone.make(around)
        steered = alone.read(content, around)
        found = CapabilityCost().run(replace(around, subject=lambda steered=steered: steered)).statistics
        sums = {name: {k.partition(".")[2]: v for k, v in values.items()} for name, values in found.items()}
        assert point.cost == sums["plain"]["kl"].sum() / sums["plain"]["predictions"].sum()
        wanted = sums["wanted"]
        gain = (wanted["ce_clean"].sum() - wanted["ce"].sum()) / wanted["predictions"].sum()
        assert point.gain == pytest.approx(gain, rel=1e-12)
        inputs = np.stack([wanted[name] for name in ("ce", "ce_clean", "predictions")], axis=1)
        bounds = document_interval(lambda ce, clean, n: (clean - ce) / n, inputs)
        assert bounds is not None
        assert (point.low, point.high) == pytest.approx((bounds.low, bounds.high), rel=1e-12)
        assert (point.layer, point.strength) == (layer, dose)


def test_the_content_of_the_choice_is_that_of_the_point_alone(around: StageContext) -> None:
    made = method()
    candidates, measured = swept(made, around)
    points = judged(made.auto, measured)
    best = max(range(len(points)), key=lambda number: points[number].low or 0)
    content = choose(made, candidates, measured)
    assert content.meta[CHOSEN] == {
        "number": best,
        "layer": points[best].layer,
        "strength": points[best].strength,
    }
    settled = made.settled(content)
    alone = made.model_copy(update={"layers": settled.layers, "dose": settled.dose, "auto": None})
    deltas, expected = settled.read(content, around).deltas, alone.read(alone.make(around), around).deltas
    assert deltas.keys() == expected.keys() == {points[best].layer}
    for layer, delta in deltas.items():
        torch.testing.assert_close(delta, expected[layer], rtol=0, atol=0)


def test_a_cheaper_choice_needs_no_new_measurement(around: StageContext) -> None:
    made = method(max_cost=None)
    candidates, measured = swept(made, around)
    costs = sorted(p.cost or 0 for p in judged(made.auto, measured))
    cheap = method(max_cost=costs[1])
    assert cheap.auto.measures() == made.auto.measures()
    assert cheap.auto.rule() != made.auto.rule()
    number = choose(cheap, candidates, measured).meta[CHOSEN]["number"]
    assert (judged(cheap.auto, measured)[number].cost or 0) <= costs[1]


def test_what_a_kill_interrupts_goes_on_where_it_was(around: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method()
    monkeypatch.setattr(sweep_cost, "TOKENS_PER_FORWARD", 80)  # two batches
    candidates, whole = swept(made, replace(around, scratch=around.scratch / "whole"))
    passes: list[str] = []
    logits = sweep_cost.document_logits
    kills = {"passes": 5}

    def forward(*given: Any) -> Any:
        passes.append("plain" if isinstance(given[2], Untouched) else "steered")
        if len(passes) == kills["passes"]:
            raise Killed
        return logits(*given)

    monkeypatch.setattr(sweep_cost, "document_logits", forward)
    with pytest.raises(Killed):
        measure_sweep(made, candidates, around)
    found = measure_sweep(made, candidates, around)
    # Of two batches, each run plainly and at two points of two layers, the second layer of the first batch is run again.
    first, again, second = ["plain", *["steered"] * 4], ["plain", *["steered"] * 2], ["plain", *["steered"] * 4]
    assert passes[: len(first + again + second)] == first + again + second
    assert found.meta == whole.meta
    assert found.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(found.tensors[name], tensor)


class Pushed(Study):
    """How strongly each of twelve things is pushed: a metric of which nobody knows how it is measured."""

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    gain: ClassVar[str | None] = "pushed.gain"
    ran: ClassVar[list[str]] = []

    metric: Literal["pushed"] = "pushed"

    def domains(self, experiment: Any) -> tuple[str, ...]:
        return ()

    def numbers(self) -> tuple[Estimator, ...]:
        return (Estimator("pushed.gain", 1, "norm", True, ("pushed.length", "pushed.n"), ratio, units="things"),)

    def run(self, context: StageContext) -> Findings:
        self.ran.append(context.scratch.name)
        if len(self.ran) == 2:
            raise Killed
        length = sum(float(delta.norm()) for delta in context.subject().deltas.values())
        luck = np.random.default_rng(context.seed("luck") % 2**32).normal(size=12)
        return Findings(statistics={"things": {"pushed.length": length + luck, "pushed.n": np.ones(12)}})


def test_any_metric_of_steering_can_be_the_gain(around: StageContext) -> None:
    made = method(gain_on=None)
    made = made.model_copy(update={"auto": made.auto.model_copy(update={"gain": Pushed(), "number": None})})
    candidates = made.candidates().make(around)
    with pytest.raises(Killed):
        measure_sweep(made, candidates, around)
    points = judged(made.auto, measure_sweep(made, candidates, around))
    assert Pushed.ran == ["point-0", "point-1", "point-1", "point-2", "point-3"]
    lengths = [sum(float(d.norm()) for d in t.read(around).deltas.values()) for t in trials(made, candidates)]
    luck = np.random.default_rng(around.seed("luck") % 2**32).normal(size=12)  # of every point alike
    for point, length in zip(points, lengths, strict=True):
        bounds = document_interval(ratio, np.stack([length + luck, np.ones(12)], axis=1))
        assert bounds is not None
        assert (point.gain, point.low, point.high) == pytest.approx((length + luck.mean(), bounds.low, bounds.high))


def test_a_scale_is_tried_where_there_is_no_dose(around: StageContext) -> None:
    made = RandomMethod(norm=1.0, layers=(0, 1), scale="auto", auto=method().auto)
    candidates = made.candidates().make(around)
    assert [(t.layer, t.strength, t.method.scale) for t in trials(made, candidates)] == [
        (None, 0.5, 0.5),
        (None, 2.0, 2.0),
    ]
    points = judged(made.auto, measure_sweep(made, candidates, around))  # type: ignore[arg-type]
    assert [point.layer for point in points] == [None, None]
    assert (points[0].cost or 0) < (points[1].cost or 0)


def test_a_gain_that_is_measured_in_two_places_needs_a_name(around: StageContext) -> None:
    made = method(gain_on=None)
    _, measured = swept(made, around)
    with pytest.raises(InvalidInput, match="is measured on plain, wanted; say which in `gain_on`"):
        judged(made.auto, measured)


def test_data_that_was_chosen_on_is_not_reported_on(around: StageContext) -> None:
    made, study = method(), CapabilityCost()
    tokens = around.tokens("plain")
    other = replace(tokens, digests=["0" * 16, *tokens.digests[1:3]])
    apart = replace(tokens, digests=["0" * 16] * len(tokens.digests))
    check_apart(made, around, [study], replace(around, tokens=lambda name: apart))
    with pytest.raises(
        InvalidInput, match="auto: 2 of the 26 problems and texts that a point is chosen on are among those"
    ):
        check_apart(made, around, [study], replace(around, tokens=lambda name: other))
