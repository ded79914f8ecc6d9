"""Whether a steered spec asks the same in training and in evaluation, told from files alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from latentbench.core.paths import Roots
from latentbench.core.protocols import ProblemSet, PromptForm
from latentbench.reasoning.accuracy import ReasoningAccuracy
from latentbench.reasoning.task_suite import TaskOptions
from latentbench.spec.project import find_project, load_specs
from latentbench.steering.method import parts_of
from latentbench_adapters.lm_eval.catalogue import prompt_form
from latentbench_adapters.pocket.adapter import PocketModel, PocketProblems
from latentbench_adapters.problems import HuggingFaceProblems

ROOTS = Roots(Path())
ALONE = PromptForm("{question}")
PLAIN = ["plain_gsm8k", "plain_math500", "plain_aime24", "plain_aime25", "plain_amc23", "plain_minerva_math"]
PLAIN += ["plain_olympiadbench", "plain_math_six"]
CHAT: dict[str, Any] = {"chat_template": True, "system": "Think."}


def said(study: ReasoningAccuracy, *problems: ProblemSet) -> tuple[str, ...]:
    """What validation says of a stack of methods that are made from `problems`."""
    parts = tuple(SimpleNamespace(problems=one, sources=()) for one in problems)
    experiment: Any = SimpleNamespace(
        model=PocketModel(), dataset=SimpleNamespace(eval={}), steering=SimpleNamespace(parts=parts)
    )
    return study.problems_in(experiment, ROOTS)


def hub(**fields: Any) -> HuggingFaceProblems:
    return HuggingFaceProblems(id="a/b", revision="c" * 40, **fields)


class Unknown(PocketProblems):
    """A set of problems that does not say how it asks."""

    @property
    def template(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("task", "options", "form"),
    [
        *((task, {}, ALONE) for task in [*PLAIN, "pocket_problems", "pocket_problems_selection"]),
        *((task, CHAT, PromptForm("{question}", True, "Think.")) for task in PLAIN),
        ("plain_gsm8k", {"system": "Think: "}, PromptForm("Think: {question}")),
        ("plain_gsm8k", {"system": ""}, ALONE),
        ("aime24", {}, PromptForm("Question: {question}\nAnswer:")),
        ("gsm8k", {"num_fewshot": 0}, PromptForm("Question: {question}\nAnswer:")),
        ("gsm8k", {}, None),  # five worked examples
        ("plain_gsm8k", {"num_fewshot": 2}, None),
        ("minerva_math500", {"num_fewshot": 0}, None),  # its text is made by code
        ("minerva_math", {"num_fewshot": 0}, None),
    ],
)
def test_the_form_of_a_task_is_read_from_its_file(task: str, options: dict[str, Any], form: PromptForm | None) -> None:
    assert prompt_form(task, TaskOptions(**options), ROOTS) == form


@pytest.mark.parametrize(
    "change",
    [
        {"doc_to_text": "{{question}} or {{answer}}"},
        {"doc_to_text": "{% if question %}{{question}}{% endif %}"},
        {"doc_to_text": "{{question | trim}}"},
        {"doc_to_text": "question"},  # a field or four letters: only the documents tell
        {"description": "Sums."},
        {"gen_prefix": "The answer is"},
        {"num_fewshot": 1},
    ],
)
def test_what_a_file_does_not_tell_is_not_guessed(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    task = {
        "task": "rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Q {{question}}",
        "doc_to_target": "{{answer}}",
    }
    for written, form in ((task, PromptForm("Q {question}")), (task | change, None)):
        (tmp_path / "rows.yaml").write_text(yaml.safe_dump(written))
        assert prompt_form("rows.yaml", TaskOptions(), Roots(tmp_path)) == form


@pytest.mark.parametrize(
    ("study", "problems", "complaint"),
    [
        ({"task": "plain_gsm8k", **CHAT}, [hub(**CHAT)], None),
        ({"task": "plain_gsm8k"}, [hub()], None),
        ({"task": "gsm8k", "num_fewshot": 0}, [hub(prompt="Question: {question}\nAnswer:")], None),
        ({"task": "gsm8k", "num_fewshot": 5}, [], None),
        (
            {"task": "plain_gsm8k", **CHAT},
            [hub()],
            "the steering is made from prompts that read '{question}', and plain",
        ),
        (
            {"task": "plain_gsm8k"},
            [hub(**CHAT)],
            "in the chat template below the system instruction 'Think.', and plain",
        ),
        ({"task": "plain_gsm8k", **CHAT}, [hub(**CHAT), hub(**CHAT | {"system": "T."})], "instruction 'T.', and plain"),
        ({"task": "aime24"}, [hub()], r"aime24 asks 'Question: {question}\nAnswer:': take a plain task"),
        ({"task": "gsm8k"}, [hub()], "how gsm8k puts its questions cannot be told"),
        ({"task": "plain_gsm8k"}, [Unknown()], "how the problems that the steering is made from put their questions"),
    ],
)
def test_a_spec_that_asks_otherwise_than_it_trained_is_refused(
    study: dict[str, Any], problems: list[ProblemSet], complaint: str | None
) -> None:
    found = said(ReasoningAccuracy(max_new_tokens=64, **study), *problems)
    if complaint is None:
        assert found == ()
    else:
        (message,) = found
        assert complaint in message
        assert "different_prompts: true" in message
    assert said(ReasoningAccuracy(max_new_tokens=64, different_prompts=True, **study), *problems) == ()


def test_saying_so_changes_no_key_and_no_fact() -> None:
    plain, differs = (ReasoningAccuracy(task="plain_gsm8k", different_prompts=flag) for flag in (False, True))
    assert plain.determining() == differs.determining()
    assert plain.settings() == differs.settings()
    assert "different_prompts" not in plain.plain()
    assert differs.plain() == plain.plain() | {"different_prompts": True}


# -- the specs that ship ---------------------------------------------------------------------------------------------


def test_shipped_specs_train_and_evaluate_on_the_same_prompts() -> None:
    """None of them asks to be let through, and what mechanism studies continue is asked alike as well."""
    project, compared = find_project(), 0
    for cell in (cell for spec in load_specs(project, []) for cell in spec.cells):
        trained = {p.form for part in parts_of(cell.experiment.steering) if (p := getattr(part, "problems", None))}
        for metric in cell.experiment.metrics if trained else ():
            if isinstance(metric, ReasoningAccuracy):
                assert trained == {prompt_form(metric.task, metric.options, project.roots)}, cell.title
                assert not metric.different_prompts
                compared += 1
            elif (continued := getattr(metric, "problems_from", None)) is not None:
                assert {continued.form} == trained, cell.title
                compared += 1
    assert compared > 100
