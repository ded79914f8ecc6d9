"""`auto` under `steering:` from a spec to rows: stages that are shared and resumed, the choice in the record, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from latentbench.core.errors import NotAvailable
from latentbench.records.record import Record
from latentbench.steering import sweep_cost
from tests.support.project import EXPERIMENT, Workbench, merged, random_words, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

ON: dict[str, Any] = {"adapter": "files", "path": "data/eval.jsonl", "documents": 6, "context": 16}
APART: dict[str, Any] = {"lab": {**ON, "path": "data/apart.jsonl", "documents": 12}}
AUTO: dict[str, Any] = {
    "gain": {"capability_cost": {}},
    "number": "capability_cost.ce_increase",
    "doses": [0.1, -0.1, 0.5],
    "texts": APART,
}
STEERING: dict[str, Any] = {"method": "random", "norm": 1.0, "layers": "auto", "dose": "auto", "auto": AUTO}


def write(bench: Workbench, steering: dict[str, Any], name: str = "mine", **changes: Any) -> list[str]:
    """A spec without an SAE; its lines."""
    left_out: dict[str, Any] = {"sae": None, "training": None, "layer": None, "dataset.train": None}
    base = merged(EXPERIMENT, {**left_out, "metrics": ["capability_cost"], **changes})
    spec = {key: value for key, value in {**base, "steering": steering}.items() if value is not None}
    text = yaml.safe_dump(json.loads(json.dumps(spec)), sort_keys=False)  # without aliases, which stand elsewhere
    write_jsonl(bench.root / "data/apart.jsonl", random_words(12))
    bench.write(f"specs/{name}.yaml", text)
    return text.splitlines()


def number(record: Record, name: str, **params: Any) -> Any:
    (value,) = (v for v in record.metrics if v.id == f"steering_choice.{name}" and (not params or v.params == params))
    return value


def run(command: Callable[..., Any], name: str = "mine") -> Any:
    done = command("run", name, "--executor", "inline")
    assert done.code == 0, done.err
    return done


def test_the_choice_and_its_frontier_are_in_the_record(bench: Workbench, command: Callable[..., Any]) -> None:
    write(bench, STEERING)
    planned = command("plan", "mine").out
    assert "sweep of 2 layers × 3 doses, each on selection data: capability_cost and 12 documents of lab" in planned
    run(command)
    (record,) = bench.records().values()
    layer, dose = (number(record, name).value for name in ("layer", "dose"))
    assert dose in AUTO["doses"]
    assert layer in (0, 1)
    assert number(record, "points").value == 6
    test = next(value for value in record.metrics if value.id == "capability_cost.ce_increase")
    gained, chosen = number(record, "test_gain"), number(record, "selection_gain")
    assert gained.value == -test.value
    assert number(record, "optimism").value == pytest.approx(chosen.value - gained.value)
    assert chosen.ci.low <= chosen.value <= chosen.ci.high
    assert (gained.domain, gained.n, chosen.n) == ("lab", 6, 12)
    front = [value.params for value in record.metrics if value.id == "steering_choice.frontier_cost"]
    assert {"layer": layer, "dose": dose} in front
    costs = [number(record, "frontier_cost", **params).value for params in front]
    assert min(costs) > 0
    # The vectors that were tried are those of a cell that states the layers.
    write(bench, {"method": "random", "norm": 1.0, "layers": "all", "dose": dose}, "all-layers")
    made = [line.split()[2] for line in command("plan", "all-layers").out.splitlines() if " subject " in line]
    assert made == [record.keys["candidates"][:12]]


def test_another_limit_chooses_anew_and_measures_nothing(
    bench: Workbench, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, STEERING)
    run(command)
    (before,) = bench.records().values()
    cheapest = min(v.value for v in before.metrics if v.id == "steering_choice.frontier_cost" and v.value is not None)
    monkeypatch.setattr("latentbench.execute.study_stage.measure_sweep", None)  # would fail, were it called
    write(bench, {**STEERING, "auto": {**AUTO, "max_cost": cheapest}}, "cheap")
    run(command, "cheap")
    cheap = bench.records()["cheap[][0]"]
    assert number(cheap, "selection_cost").value == cheapest
    assert cheap.keys["sweep"] == before.keys["sweep"]
    write(bench, {**STEERING, "auto": {**AUTO, "max_cost": 0.0}}, "free")
    done = command("run", "free", "--executor", "inline")
    assert done.code != 0
    (failed,) = (r for r in bench.records().values() if r.spec.name == "free")
    assert failed.error is not None
    assert "none of 6 points costs at most 0 nats per token, the cheapest" in failed.error.message


def test_a_run_that_died_within_a_sweep_goes_on(
    bench: Workbench, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = {**AUTO, "doses": [0.1, -0.1]}
    made = {
        "method": "contrastive",
        "positive": ["ore salt"],
        "negative": ["gas glass"],
        "layers": "auto",
        "dose": "auto",
    }
    write(bench, {**made, "auto": {**auto, "layers": [0, 1]}}, "whole")
    run(command, "whole")
    write(bench, {**made, "auto": auto})
    logits, passes = sweep_cost.document_logits, list[Any]()

    def dying(*given: Any) -> Any:
        passes.append(given)
        if len(passes) == 5:  # the second layer has begun
            raise NotAvailable("the machine is gone")
        return logits(*given)

    monkeypatch.setattr(sweep_cost, "document_logits", dying)
    assert command("run", "mine", "--executor", "inline").code != 0
    assert "continues from its checkpoint" in command("plan", "mine").out
    run(command)
    assert len(passes) == 5 + 3  # without steering, and at the two points of the second layer
    here, there = ({n.id: n for n in bench.records()[f"{name}[][0]"].metrics} for name in ("mine", "whole"))
    assert here["steering_choice.selection_gain"] == there["steering_choice.selection_gain"]


REASONED = {"reasoning_accuracy": {"task": "pocket_problems"}}


@pytest.mark.parametrize(
    ("steering", "place", "says"),
    [
        ({"layers": "auto", "auto": None}, "steering", "`layers: auto` needs `auto:"),
        ({"layers": 0, "dose": None}, "steering", "write `auto` for `layers`, `dose` or `scale` as well"),
        ({"scale": "auto"}, "steering", "a dose other than 0 takes the place of `scale`"),
        ({"auto": {**AUTO, "number": None}}, "auto", "`number` must say which number of 'capability_cost'"),
        ({"auto": {**AUTO, "gain": "mse"}}, "gain", "the metric 'mse' does not measure steering"),
        ({"auto": {**AUTO, "doses": [0.1, 0]}}, "doses", "0 is the model without steering"),
        ({"auto": {**AUTO, "doses": [0.1, 0.1]}}, "doses", "must be different numbers"),
        ({"auto": {**AUTO, "layers": [0, 7]}}, "- 7", "the model has 2 decoder blocks, 0 to 1"),
        ({"auto": {**AUTO, "cost_on": "x"}}, "cost_on", "there are no selection texts 'x' (known: lab)"),
        ({"auto": {**AUTO, "texts": {"lab": ON}}}, "lab", "the very documents of dataset.eval.lab"),
        ({"auto": {**AUTO, "texts": {"lab": {**ON, "documents": None}}}}, "lab", "state how many `documents`"),
        ({"auto": {"gain": {"reasoning_accuracy": {"task": "gsm9k"}}}}, "gain", "did you mean gsm8k"),
        ({"auto": {"gain": REASONED}, "metrics": REASONED}, "gain", "on the very problems that"),
    ],
)
def test_wrong_combinations_are_refused_at_their_place(
    bench: Workbench, command: Callable[..., Any], steering: dict[str, Any], place: str, says: str
) -> None:
    changes = dict(steering)
    metrics = {"metrics": [changes.pop("metrics")]} if "metrics" in changes else {}
    made = {key: value for key, value in {**STEERING, **changes}.items() if value is not None}
    lines = write(bench, made, **metrics)
    refused(command, lines, place, says)


@pytest.mark.parametrize(
    ("steering", "place", "says"),
    [
        ({"method": "rl", "problems": {"adapter": "pocket"}, "layers": "auto"}, "layers", "or write `scale: auto`"),
        ({"method": "prefix", "text": "x", "scale": "auto"}, "scale", "is not for the method 'prefix'; state it"),
        ({"method": "sae_latent", "latent": 1, "layers": "auto"}, "layers", "`dose: auto` or `scale: auto`"),
        ({"method": "sae_latents", "latents": [1], "clamp": 1.0, "layers": "auto"}, "layers", "`scale: auto`"),
        (
            {"method": "ablate", "directions": [{"method": "random", "norm": 1.0}], "dose": "auto"},
            "dose",
            "write `layers: auto` or `scale: auto`",
        ),
        (
            {"method": "stack", "parts": [{"method": "none"}], "layers": "auto"},
            "layers",
            "the method 'stack'; state it",
        ),
        (
            {"method": "stack", "parts": [{**STEERING, "auto": {**AUTO, "gain": {"metric": "capability_cost"}}}]},
            "steering",
            "`auto` is for methods that stand alone",
        ),
    ],
)
def test_what_a_method_cannot_leave_open_is_refused_at_its_place(
    bench: Workbench, command: Callable[..., Any], steering: dict[str, Any], place: str, says: str
) -> None:
    refused(command, write(bench, {**steering} if "parts" in steering else {**steering, "auto": AUTO}), place, says)


def refused(command: Callable[..., Any], lines: list[str], place: str, says: str) -> None:
    """Validation says so at the line that begins with `place`, or at that of its value."""
    done = command("validate", "mine")
    assert done.code == 2
    (finding,) = [line for line in done.err.splitlines() if says in line]
    line, column = map(int, finding.split("specs/mine.yaml:")[1].split(": ")[0].split(":")[:2])
    named = [n for n, text in enumerate(lines, 1) if text.strip().startswith(place)]
    assert line in {n + more for n in named for more in (0, 1)}
    assert 0 < column <= len(lines[line - 1])


def test_texts_that_are_reported_on_are_found_whatever_they_are_called(
    bench: Workbench, command: Callable[..., Any]
) -> None:
    same = {"lab": {**ON, "documents": 5, "skip": 1}}
    write(bench, {**STEERING, "auto": {**AUTO, "texts": same}})
    assert command("run", "mine", "--executor", "inline").code != 0
    (record,) = bench.records().values()
    assert record.error is not None
    assert "auto: 5 of the 5 problems and texts that a point is chosen on are among those" in record.error.message


@pytest.mark.slow
def test_random_directions_gain_nothing_on_problems_that_took_no_part(
    bench: Workbench, command: Callable[..., Any]
) -> None:
    """The best of twelve random points looks like a find where it was chosen, and is none on other problems."""
    general = {"adapter": "pocket", "domain": "general", "split": "eval", "documents": 16, "context": 32}
    auto = {"gain": {"reasoning_accuracy": {"task": "pocket_problems_selection", "limit": 48}}, "doses": [0.1, 0.2]}
    write(
        bench,
        {"method": "random", "norm": 1.0, "layers": "auto", "dose": "auto", "auto": auto},
        model={"adapter": "pocket"},
        **{"dataset.eval": {"general": general}},
        metrics=[{"reasoning_accuracy": {"task": "pocket_problems", "limit": 192}}],
    )
    run(command)
    (record,) = bench.records().values()
    gained = number(record, "test_gain")
    assert (gained.n, number(record, "points").value) == (192, 12)
    assert gained.ci.low <= 0 <= gained.ci.high
    assert gained.value == next(v.value for v in record.metrics if v.id == "reasoning_accuracy.gain")


def test_directions_are_projected_out_where_that_gains_most(bench: Workbench, command: Callable[..., Any]) -> None:
    directions = [{"method": "random", "norm": 1.0, "layers": 0}]
    write(bench, {"method": "ablate", "directions": directions, "layers": "auto", "scale": "auto", "auto": AUTO})
    run(command)
    (record,) = bench.records().values()
    assert number(record, "scale").value in (0.25, 0.5, 1.0, 2.0)
    assert number(record, "points").value == 8
