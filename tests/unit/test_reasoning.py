"""`reasoning_accuracy` and `capability_cost` as sections of a spec: what they accept, name and promise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import ProblemSet
from latentbench.metrics.base import Estimator
from latentbench.metrics.value import MetricValue
from latentbench.reasoning.accuracy import ReasoningAccuracy, ks_of, pass_at
from latentbench.reasoning.evaluation import Outcomes, _statistics, weights
from latentbench.records.record import Record, SpecOrigin
from latentbench.report.frontier import choose_scale, frontiers
from latentbench.spec.fit import too_long
from latentbench.steering.capability_cost import CapabilityCost
from latentbench_adapters.pocket.adapter import PocketModel, PocketProblems
from latentbench_adapters.problems import FileProblems, HuggingFaceProblems

ROOTS = Roots(Path())


def experiment(*domains: str, problems: ProblemSet | None = None) -> Any:
    return SimpleNamespace(
        model=PocketModel(),
        dataset=SimpleNamespace(eval=dict.fromkeys(domains)),
        steering=SimpleNamespace(problems=problems, sources=()),
    )


def study(**fields: Any) -> ReasoningAccuracy:
    return ReasoningAccuracy(**{"task": "pocket_problems", **fields})


# -- the section ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9), min_size=1, max_size=6)
)
def test_a_mean_over_tasks_is_the_mean_of_their_numbers(tasks: list[list[tuple[int, int]]]) -> None:
    """Every number of a group is the mean of those that its tasks have alone, whatever their sizes."""
    samples = 3

    def outcomes(rows: list[list[tuple[int, int]]], side: int) -> Outcomes:
        right = np.array([[float(at < problem[side]) for at in range(samples)] for task in rows for problem in task])
        return Outcomes(right, 1 - right, 5 + right, right, [], {}, "", 0)

    def numbers(rows: list[list[tuple[int, int]]], asked: ReasoningAccuracy) -> list[float]:
        weight = weights(asked.mean_over, [len(task) for task in rows])
        found = _statistics(asked, outcomes(rows, 0), outcomes(rows, 1), weight)
        return [float(e.formula(*(found[name].sum() for name in e.inputs))) for e in asked.numbers()]

    whole = study(samples=samples, temperature=1.0, mean_over="tasks")
    alone = [numbers([task], study(samples=samples, temperature=1.0)) for task in tasks]
    np.testing.assert_allclose(numbers(tasks, whole), np.mean(alone, axis=0), rtol=0, atol=1e-12)


def test_what_counts_alike_is_written_only_where_it_is_said() -> None:
    assert "mean_over" not in study().plain()
    assert study().settings().keys() == study(mean_over="problems").settings().keys()
    assert study(mean_over="tasks").settings() == {**study().settings(), "mean_over": "tasks"}


def test_samples_need_a_temperature() -> None:
    with pytest.raises(ValidationError, match="all the same"):
        study(samples=4)
    assert study(samples=4, temperature=1.0).samples == 4


@pytest.mark.parametrize(
    ("fields", "domain"),
    [
        ({}, "pocket_problems"),
        ({"task": "tasks/My sums.yaml"}, "My_sums"),
        ({"task": "./_.yml"}, "task"),
        ({"name": "hot"}, "hot"),
    ],
)
def test_the_column_group_is_the_tasks_name(fields: dict[str, Any], domain: str) -> None:
    assert study(**fields).domain == domain


def test_a_task_brings_a_domain_of_its_own() -> None:
    one, other = (study(temperature=t).comparability(experiment(), ROOTS) for t in (0.0, 1.0))
    assert list(one) == ["pocket_problems"]
    assert one != other
    assert study(batch=8, examples=3).comparability(experiment(), ROOTS) == one
    assert {"model", "task", "samples", "temperature", "limit", "max_new_tokens"} <= set(one["pocket_problems"])


@pytest.mark.parametrize(
    "change", [{"limit": 7}, {"max_new_tokens": 9}, {"seed": 1}, {"num_fewshot": 2}, {"filter": "x"}]
)
def test_whatever_changes_answers_sets_rows_apart(change: dict[str, Any]) -> None:
    assert study(**change).comparability(experiment(), ROOTS) != study().comparability(experiment(), ROOTS)


def test_an_unknown_task_is_a_problem_of_the_spec() -> None:
    with pytest.raises(InvalidInput, match=r"did you mean .*pocket_problems"):
        study(task="pocket_problem").problems_in(experiment(), ROOTS)


def test_answers_must_leave_room_in_the_context() -> None:
    context = PocketModel().facts(ROOTS).context
    assert context

    def said(**fields: Any) -> list[str]:
        made: Any = SimpleNamespace(
            dataset=SimpleNamespace(eval={}, trained_on={}), steering=None, metrics=(study(**fields),)
        )
        return [message for _, message in too_long(made, context, ROOTS)]

    (problem,) = said(max_new_tokens=context)
    assert f"the model's context of {context}" in problem
    (problem,) = said(task="aime24")  # asks for 32,768 by itself
    assert problem.startswith("answers of 32768 tokens")
    assert said(task="aime24", max_new_tokens=64) == []


@pytest.mark.parametrize(
    ("task", "problems", "same"),
    [
        ("pocket_problems", PocketProblems(split="eval"), True),
        ("pocket_problems", PocketProblems(split="train"), False),
        ("gsm8k", PocketProblems(split="eval"), False),
        ("gsm8k", HuggingFaceProblems(id="openai/gsm8k", split="test"), True),
        ("gsm8k", HuggingFaceProblems(id="openai/gsm8k", split="train"), False),
    ],
)
def test_nothing_is_trained_on_what_is_tested(task: str, problems: ProblemSet, same: bool) -> None:
    asking = study(task=task, max_new_tokens=64, different_prompts=True)
    found = asking.problems_in(experiment(problems=problems), ROOTS)
    assert bool(found) == same
    stack = SimpleNamespace(parts=(SimpleNamespace(sources=()), SimpleNamespace(problems=problems, sources=())))
    stacked = SimpleNamespace(**{**vars(experiment()), "steering": stack})
    assert asking.problems_in(stacked, ROOTS) == found
    assert all("take another split" in text for text in found)


def test_a_file_that_a_task_tests_is_not_trained_on(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"question": "{split}?", "answer": "1"}}\n', "utf-8")
    config = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    }
    config |= {
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config), "utf-8")
    tested = {
        split: study(task="own.yaml").problems_in(
            experiment(problems=FileProblems(path=f"{split}.jsonl", question="question", answer="answer")), roots
        )
        for split in ("train", "test")
    }
    assert tested["train"] == ()
    assert "take another split" in tested["test"][0]


def test_pass_at_k_is_the_mean_over_all_draws_of_k() -> None:
    from itertools import combinations

    assert [ks_of(samples) for samples in (1, 2, 3, 4, 5, 16)] == [(), (), (2,), (2,), (2, 4), (2, 4, 8)]
    for right in range(6):
        answers = [True] * right + [False] * (5 - right)
        for k in (2, 4):
            draws = [any(drawn) for drawn in combinations(answers, k)]
            assert pass_at(k, 5, np.array([right]))[0] == pytest.approx(np.mean(draws))
    assert len(study(samples=4, temperature=1.0).numbers()) == len(study().numbers()) + 2
    one, many = (study(samples=n, temperature=1.0).identity(experiment(), ROOTS) for n in (1, 4))
    assert many == one | {"pass_at": [2]}


def test_datasets_of_a_task_are_pinned_and_their_commit_alone_sets_rows_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--openai--gsm8k/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40, "ascii")
    pinned = study(task="gsm8k").pinned(ROOTS)
    assert pinned.commits == {"openai/gsm8k": "a" * 40}
    before = pinned.identity(experiment(), ROOTS)
    (refs / "main").write_text("b" * 40, "ascii")  # main moves on, or was not known at first
    assert pinned.identity(experiment(), ROOTS) == before
    assert pinned.pinned(ROOTS) is pinned
    assert study(task="gsm8k").identity(experiment(), ROOTS) != before
    assert pinned.determining() == study(task="gsm8k").determining()
    assert study().pinned(ROOTS).commits == {}


def test_a_domain_cannot_be_called_like_the_task() -> None:
    assert study().problems_in(experiment("general"), ROOTS) == ()
    (message,) = study().problems_in(experiment("pocket_problems"), ROOTS)
    assert "another `name:`" in message


# -- its numbers ----------------------------------------------------------------------------------------------------

STATISTICS = {
    "correct": [2, 0, 4, 1],
    "base_correct": [1, 0, 1, 1],
    "solved": [1, 0, 1, 1],
    "base_solved": [1, 0, 1, 1],
    "unformatted": [0, 4, 0, 0],
    "base_unformatted": [2, 2, 0, 0],
    "tokens": [40, 80, 20, 20],
    "base_tokens": [4, 4, 4, 4],
    "truncated": [0, 1, 0, 0],
    "answers": [4, 4, 4, 4],
    "problems": [1, 1, 1, 1],
}
EXPECTED = {
    "accuracy": 7 / 16,
    "base": 3 / 16,
    "gain": 4 / 16,
    "pass_at_n": 3 / 4,
    "base_pass_at_n": 3 / 4,
    "format_failure": 4 / 16,
    "base_format_failure": 4 / 16,
    "mean_length": 10,
    "base_mean_length": 1,
    "truncated": 1 / 16,
}


def value(estimator: Estimator, metric: str, statistics: dict[str, list[float]]) -> float:
    inputs = [np.array(statistics[name.removeprefix(f"{metric}.")], float).sum() for name in estimator.inputs]
    return float(estimator.formula(*inputs))


def test_numbers_are_their_formulas() -> None:
    numbers = study(samples=2, temperature=0.7).numbers()
    assert {e.id.partition(".")[2]: value(e, "reasoning_accuracy", STATISTICS) for e in numbers} == EXPECTED
    assert {(e.units, e.paired, e.params["samples"], e.params["temperature"]) for e in numbers} == {
        ("problems", True, 2, 0.7)
    }


def test_costs_are_reported_at_every_scale() -> None:
    statistics = {
        "predictions": [3, 1],
        "ce_clean": [6, 2],
        "ce": [7, 3],
        "kl": [1, 1],
        "ce[2.0]": [8, 4],
        "kl[2.0]": [3, 1],
    }
    numbers = CapabilityCost(scales=(2.0, 2.0)).numbers()
    found = {(e.id, e.params.get("scale")): value(e, "capability_cost", statistics) for e in numbers}
    assert found == {
        ("capability_cost.ce_clean", None): 2.0,
        ("capability_cost.ce_increase", None): 0.5,
        ("capability_cost.kl", None): 0.5,
        ("capability_cost.ce_increase", 2.0): 1.0,
        ("capability_cost.kl", 2.0): 1.0,
    }
    assert len(found) == len(numbers)


# -- choosing a scale -----------------------------------------------------------------------------------------------


def record(scale: float, accuracy: float | None, kl: float = 0.0, **about: Any) -> Record:
    def number(name: str, domain: str, value: float | None, **params: Any) -> MetricValue:
        reason = None if value is not None else "not measured"
        return MetricValue(
            id=name,
            version=1,
            domain=domain,
            value=value,
            null_reason=reason,
            unit="",
            higher_is_better=None,
            params=params,
        )

    metrics = (
        number("reasoning_accuracy.accuracy", "selection", accuracy),
        number("reasoning_accuracy.accuracy", "test", 1 / (1 + scale)),  # must not matter
        number("capability_cost.kl", "dev", kl),
        number("capability_cost.kl", "dev", 99.0, scale=9.0),  # of a sweep within the cell
    )
    origin = SpecOrigin(name="x", path="specs/x.yaml", digest="0")
    fields = {"cell": "0", "label": "", "seed": 0, "status": "ok", "created": "2026-01-01", **about}
    return Record(spec=origin, resolved={"steering": {"scale": scale}}, metrics=metrics, **fields)


def test_the_best_scale_on_the_selection_problems_is_chosen() -> None:
    records = [
        record(0.5, 0.2),
        record(1.0, 0.6),
        record(2.0, 0.6),
        record(4.0, 0.9, status="failed"),
        record(3.0, None),
    ]
    assert choose_scale(records, "selection") == 1.0


def test_seeds_are_averaged_and_costs_can_be_bounded() -> None:
    records = [record(1.0, 0.5, 0.1), record(1.0, 0.3, 0.1), record(2.0, 0.45, 0.1), record(3.0, 0.9, 0.8)]
    assert choose_scale(records, "selection") == 3.0
    assert choose_scale(records, "selection", dev="dev", most_kl=0.2) == 2.0


def test_nothing_to_choose_from_is_said() -> None:
    with pytest.raises(InvalidInput, match="no record has"):
        choose_scale([], "selection")
    with pytest.raises(InvalidInput, match=r"none has capability_cost\.kl"):
        choose_scale([record(1.0, 0.5, 0.3)], "selection", dev="dev", most_kl=0.1)


def test_a_frontier_holds_every_scale_of_what_is_alike_but_for_it() -> None:
    records = [record(1.0, 0.5, 0.1), record(1.0, 0.3, 0.1), record(2.0, 0.45, 0.1), record(3.0, 0.9, 0.8)]
    (found,) = frontiers(records, "selection", "dev", 0.2)
    assert (found.scales, found.chosen) == ((1.0, 2.0, 3.0), 2.0)
    assert found.columns["accuracy selection"] == {1.0: pytest.approx(0.4), 2.0: 0.45, 3.0: 0.9}
    assert found.columns["accuracy test"][1.0] == 0.5
    assert found.columns["kl dev"] == {1.0: pytest.approx(0.1), 2.0: 0.1, 3.0: 0.8}
    other = record(1.0, 0.9).model_copy(update={"resolved": {"steering": {"scale": 1.0, "method": "random"}}})
    assert frontiers([*records, other], "selection")[0].chosen == 3.0  # something else that was not swept
    with pytest.raises(InvalidInput, match=r"differ in `steering\.scale` alone"):
        frontiers([records[0], other], "selection")
