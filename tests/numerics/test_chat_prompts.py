"""What training and studies ask is what the evaluation asks: the same text and the same tokens, in any chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.chat import asked
from latentbench.interventions.generation import prompt_ids
from latentbench.mechanism.metrics.output_tokens import TokenShift
from latentbench.reasoning.task_suite import TaskOptions
from latentbench.steering import computed_vectors, rl_training
from latentbench.steering.contrastive import ContrastiveMethod
from latentbench.steering.grading import read_problems
from latentbench.steering.optimised import RlMethod
from latentbench_adapters.lm_eval.catalogue import find_task, prompt_form, read_shipped_task
from latentbench_adapters.lm_eval.steered_model import SteeredLM
from latentbench_adapters.lm_eval.tasks import load
from latentbench_adapters.problems import FileProblems
from tests.support.steering import lab, language_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} {% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)
FOLDED = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set said = 'w9 w9' %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}w7 {{ said }} w8 {{ m.content }} w6{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "takes no system instruction": NO_SYSTEM, "a default instruction": FOLDED}
QUESTIONS = ["w3 w4 w5", "  w10 w11?\n", "{{ 7 * 7 }} w5 {question}"]
WORDS = "w20 {question} w21"


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    rows = [{"question": question, "answer": str(number)} for number, question in enumerate(QUESTIONS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Roots(tmp_path)


def speaking(template: str | None) -> LanguageModel:
    lm = language_model("llama", torch.float32)
    lm.tokenizer.chat_template = template
    return lm


def trained_on(lm: LanguageModel, roots: Roots, **fields: Any) -> list[str]:
    """The prompts of a training."""
    problems = FileProblems(path="rows.jsonl", **fields)
    return [problem.prompt for problem in read_problems(problems, lab(lm, roots.project))]


def evaluated_on(lm: LanguageModel, roots: Roots, text: str, options: TaskOptions) -> list[str]:
    """The prompts of an evaluation of the same rows."""
    task = {
        "task": "rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": text,
        "doc_to_target": "{{answer}}",
    }
    (roots.project / "rows.yaml").write_text(yaml.safe_dump(task))
    chat = SteeredLM(lm).apply_chat_template
    (problems,) = load("rows.yaml", options, roots, roots.project / "cache", chat)
    return [str(group[0].args[0]) for group in problems.groups]


@pytest.mark.parametrize("system", [None, "w12 step by step"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_training_and_evaluation_read_the_same_prompts(template: str, system: str | None, roots: Roots) -> None:
    lm = speaking(TEMPLATES[template])
    chat = {"chat_template": True, "system": system}
    for prompt, text in (("{question}", "{{question}}"), (WORDS, "w20 {{question}} w21")):
        options = TaskOptions(**chat)  # type: ignore[arg-type]
        trained, evaluated = trained_on(lm, roots, prompt=prompt, **chat), evaluated_on(lm, roots, text, options)
        assert trained == evaluated
        assert all(question.strip() in read for question, read in zip(QUESTIONS, trained, strict=True))
        ids, mask = SteeredLM(lm).tok_batch_encode(evaluated)
        assert prompt_ids(lm, trained) == [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]


def test_whatever_reads_problems_reads_them_in_the_template(roots: Roots) -> None:
    """Training by rewards, contrasts of texts, and studies of what vectors do."""
    lm = speaking(CHATML)
    problems = {"adapter": "files", "path": "rows.jsonl", "chat_template": True, "system": "w12"}
    expected, context = [asked(lm.tokenizer, question, "w12") for question in QUESTIONS], lab(lm, roots.project)
    sizes = {"steps": 1, "prompts": 1, "samples": 2, "selection": 2}
    rl = RlMethod.model_validate_json(json.dumps({"problems": problems, **sizes}))
    selection, training = rl_training._problems(rl, context)
    assert [problem.prompt for problem in (*selection, *training)] == expected
    contrast = {"problems": problems, "positive": [" w3"], "negative": [" w4"]}
    positive, _ = computed_vectors._texts(ContrastiveMethod.model_validate_json(json.dumps(contrast)), context)
    assert positive == [prompt + " w3" for prompt in expected]
    study = TokenShift.model_validate_json(json.dumps({"problems_from": problems}))
    assert [problem.prompt for problem in study.asked(context)] == expected


@pytest.mark.parametrize("system", [None, "w12. "])
@pytest.mark.parametrize("text", ["{{question}}", "w20 {{ question }} w21\n", "w20: {{answer}}"])
def test_without_a_template_as_well(text: str, system: str | None, roots: Roots) -> None:
    """What the form of a task says is what lm-eval makes of it."""
    lm, options = speaking(CHATML), TaskOptions(system=system)
    evaluated = evaluated_on(lm, roots, text, options)
    form = prompt_form("rows.yaml", options, roots)
    assert form is not None
    field = "answer" if "answer" in text else "question"
    assert trained_on(lm, roots, prompt=form.text, question=field) == evaluated


def test_a_model_without_a_chat_template_is_refused(roots: Roots) -> None:
    with pytest.raises(InvalidInput, match="this one has none; leave it out, or write the template into"):
        trained_on(speaking(None), roots, chat_template=True)
    assert trained_on(speaking(None), roots) == QUESTIONS


def test_a_template_that_refuses_everything_is_one_error() -> None:
    tokenizer = speaking("{{ raise_exception('not today') }}").tokenizer
    for system in (None, "w5"):
        with pytest.raises(InvalidInput, match="chat template refuses a question: not today") as caught:
            asked(tokenizer, "w3", system)
        assert "\n" not in str(caught.value)


PLAIN: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "plain_gsm8k": ({"question": "How many?", "answer": "1+1=2\n#### 1,234"}, "How many?", "so it is 1234.", "2"),
    "plain_math500": (
        {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "answer": r"\frac{1}{2}"},
        "Half?",
        r"Thus \boxed{0.5}",
        r"Thus \boxed{2}",
    ),
    "plain_aime24": ({"Problem": "Sum?", "Solution": "…", "Answer": 204}, "Sum?", r"So \boxed{204}.", r"\boxed{240}"),
    "plain_aime25": ({"problem": "Product?", "answer": "70"}, "Product?", r"So \boxed{70}.", "71"),
    "plain_amc23": (
        {"id": 0, "problem": "How far?", "answer": "27.0", "url": "", "question": "How many miles?"},
        "How far?",
        r"So \boxed{27}.",
        r"So \boxed{28}.",
    ),
    "plain_minerva_math": (
        {"problem": "How hot?", "solution": r"First \boxed{1}, then $\boxed{\frac{x}{2}}$.", "type": "", "idx": 0},
        "How hot?",
        r"Hence $\boxed{0.5 x}$.",
        r"Hence $\boxed{1}$.",
    ),
    "plain_olympiadbench": (
        {"question": "Which?", "solution": ["…"], "final_answer": [r"$2^{n}$"], "answer": r"$2^{n}$"},
        "Which?",
        r"There are $\boxed{2 \cdot 2^{n-1}}$.",
        r"There are $\boxed{2 n}$.",
    ),
}
BENCHMARKS = [
    "plain_aime24",
    "plain_aime25",
    "plain_amc23",
    "plain_math500",
    "plain_minerva_math",
    "plain_olympiadbench",
]


@pytest.mark.parametrize("task", PLAIN)
def test_plain_tasks_ask_the_question_alone_and_know_the_answer(
    task: str, monkeypatch: pytest.MonkeyPatch, roots: Roots
) -> None:
    import datasets

    row, question, right, wrong = PLAIN[task]
    rows = datasets.DatasetDict({split: datasets.Dataset.from_list([row]) for split in ("train", "test")})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: rows)
    lm = speaking(CHATML)
    options = TaskOptions(chat_template=True, system="w12")
    (problems,) = load(task, options, roots, roots.project / "cache", SteeredLM(lm).apply_chat_template)
    (group,) = problems.groups
    assert group[0].args[0] == asked(lm.tokenizer, question, "w12")
    assert [problems.scores([[answer]])[0].correct for answer in (right, wrong)] == [1, 0]
    assert problems.scores([[right]])[0].formatted


@pytest.mark.parametrize(
    ("group", "tasks"),
    [("plain_math_six", BENCHMARKS), ("plain_math_short", BENCHMARKS[:3]), ("plain_math_long", BENCHMARKS[3:])],
)
def test_the_benchmarks_of_the_paper_are_groups(
    group: str, tasks: list[str], monkeypatch: pytest.MonkeyPatch, roots: Roots
) -> None:
    import datasets

    rows = {read_shipped_task(find_task(task))["dataset_path"]: PLAIN[task][0] for task in tasks}
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, **_: datasets.DatasetDict(
            {split: datasets.Dataset.from_list([rows[path]]) for split in ("train", "test")}
        ),
    )
    loaded = load(group, TaskOptions(), roots, roots.project / "cache", SteeredLM(speaking(CHATML)).apply_chat_template)
    assert sorted(problems.name for problems in loaded) == sorted(tasks)
    for problems in loaded:
        _, question, right, wrong = PLAIN[problems.name]
        assert [group[0].args[0] for group in problems.groups] == [question]
        assert [problems.scores([[answer]])[0].correct for answer in (right, wrong)] == [1, 0]
