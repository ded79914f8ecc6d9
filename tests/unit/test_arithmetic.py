"""Questions of simple arithmetic: right answers, splits that share nothing, and tasks that ask as the problems do."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest

from latentbench.core.errors import SpecError
from latentbench.core.paths import Roots
from latentbench.core.plugins import Choice
from latentbench.reasoning.task_suite import TaskOptions
from latentbench.steering.grading import same_last_number
from latentbench_adapters.arithmetic.adapter import ArithmeticProblems
from latentbench_adapters.arithmetic.questions import TEST, VERSION, Kind, documents, questions
from latentbench_adapters.lm_eval.catalogue import prompt_form
from latentbench_adapters.lm_eval.suite import LmEvalTasks
from latentbench_adapters.lm_eval.tasks import load, task_identity

KINDS: tuple[Kind, ...] = get_args(Kind)
ROOTS = Roots(Path())


def answered(text: str) -> int:
    """The answer, read from the question by other means than it was made by."""
    a, b, *rest = map(int, re.findall(r"\d+", text))
    if "+" in text or "more" in text:
        return a + b
    if re.search(r"-|gives away|loses|sells", text):
        return a - b
    return max(a, b, *rest) if "largest" in text else sum([a] * b)


def words(text: str) -> tuple[str, ...]:
    """Whatever their order: 47 + 38 is 38 + 47."""
    return tuple(sorted(re.findall(r"\w+", text)))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right_and_never_negative(kind: Kind) -> None:
    for question in islice(questions(kind, "train"), 500):
        assert question.answer == answered(question.text) >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_question_is_trained_on_and_tested(kind: Kind) -> None:
    tested = [row["question"] for row in documents(kind)["test"]]
    assert len(tested) == len(set(tested))
    assert len(tested) == TEST or (kind in ("difference", "product") and len(tested) > 150)  # of which there are few
    trained = {words(question.text) for seed in (0, 1) for question in islice(questions(kind, "train", seed), 4000)}
    assert trained.isdisjoint(map(words, tested))
    assert next(questions(kind, "train", 0)) != next(questions(kind, "train", 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_asks_as_its_problems_do_and_takes_the_last_number(kind: Kind, tmp_path: Path) -> None:
    name, problems = f"arithmetic_{kind}", ArithmeticProblems(kind=kind, split="eval")
    (task,) = load(name, TaskOptions(limit=2), ROOTS, tmp_path, lambda *a, **k: "")
    first = next(problems.problems(ROOTS))
    (request,) = task.groups[0]
    assert request.args[0] == first.prompt
    assert task.gold(task.groups[0]) == first.answer
    assert prompt_form(name, TaskOptions(), ROOTS) == problems.form
    for written, right in (
        (f" 7 and so it is {first.answer}.", True),
        (f"{first.answer}, or 7777", False),
        ("", False),
    ):
        score = task.scores([[written]] * len(task.groups))[0]
        assert bool(score.correct) is same_last_number(written, first.answer) is right


def test_a_task_is_known_to_test_on_problems_of_its_own_kind_and_split_alone() -> None:
    def known(task: str, **fields: str) -> bool:
        return LmEvalTasks().tests_on(task, ArithmeticProblems.model_validate(fields).identity(ROOTS), ROOTS)  # type: ignore[arg-type]

    assert known("arithmetic_sum", kind="sum", split="eval")
    assert not known("arithmetic_sum", kind="sum")
    assert not known("arithmetic_sum", kind="largest", split="eval")
    assert not known("pocket_problems", kind="sum", split="eval")


def test_identities_hold_the_version_of_what_makes_the_questions() -> None:
    assert task_identity("arithmetic_sum", ROOTS)["documents"] == {"arithmetic": VERSION}  # type: ignore[index,call-overload]
    assert "arithmetic" not in str(task_identity("pocket_problems", ROOTS))
    assert ArithmeticProblems(kind="sum").identity(ROOTS)["arithmetic"] == VERSION  # type: ignore[index,call-overload]


def test_a_prompt_without_a_place_for_the_question_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no \{question\}"):
        ArithmeticProblems(kind="sum", prompt="Go!")
    with pytest.raises((SpecError, ValueError), match="kind"):
        Choice("problems", "adapter").read({"adapter": "arithmetic"})
