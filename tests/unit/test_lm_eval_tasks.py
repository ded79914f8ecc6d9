"""Tasks: found without importing lm-eval, and task files of the user without code or ways out of the project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from latentbench.core.errors import InvalidInput, LatentbenchError, NotAvailable, RefusedFile, StoreError
from latentbench.core.paths import Roots
from latentbench.reasoning.answer_cache import AnswerCache, TaskAnswer
from latentbench.reasoning.task_suite import TaskOptions, installed_suite, is_path
from latentbench_adapters.lm_eval.catalogue import find_task, lm_eval_version, members, read_shipped_task
from latentbench_adapters.lm_eval.task_file import read_task
from latentbench_adapters.lm_eval.tasks import LmEvalProblems, load, task_identity
from latentbench_adapters.pocket import text
from latentbench_adapters.pocket.tasks import documents

TASK: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/sums.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "num_fewshot": 0,
}


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    rows = [{"question": f"{a} + {a}?", "answer": str(2 * a)} for a in range(5)]
    (project / "data/sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "outside.jsonl").write_text('{"question": "?", "answer": "secret"}\n')
    return Roots(project)


def written(roots: Roots, text: str | None = None, **changes: Any) -> str:
    content = yaml.safe_dump({**TASK, **changes}) if text is None else text
    (roots.project / "sums.yaml").write_text(content)
    return "sums.yaml"


def loaded(roots: Roots, task: str, **options: Any) -> Any:
    return load(task, TaskOptions(**options), roots, roots.project / "cache", lambda *a, **k: "")


# -- shipped tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsm8k", "hendrycks_math500", "aime24", "pocket_problems"])
def test_a_shipped_task_is_found(name: str) -> None:
    assert read_shipped_task(find_task(name))["task"] == name


def test_a_group_has_members() -> None:
    names = [read_shipped_task(path).get("task") for path in members("minerva_math")][1:]
    assert len(names) == 7
    assert "minerva_math_algebra" in names


def test_answers_in_latex_can_be_scored_here() -> None:
    """lm-eval's MATH tasks and the rewards of training want parsers that one version of antlr serves alike."""
    from lm_eval.tasks.minerva_math.utils import process_results

    right = r"Final Answer: The final answer is $\frac{2}{4}$. I hope it is correct."
    asked = {"answer": r"\frac{1}{2}", "solution": r"so it is \boxed{\frac{1}{2}}"}
    assert process_results(asked, [right]) == {"exact_match": 1, "math_verify": 1}
    assert process_results(asked, [r"It is \boxed{\frac12}."])["math_verify"] == 1  # what training rewards
    assert process_results({**asked, "answer": "3", "solution": r"\boxed{3}"}, [right])["math_verify"] == 0


@pytest.mark.parametrize(
    ("gold", "answer", "formatted"),
    [
        ("42", r"so it is \boxed{42}", True),
        ("42", "so it is $42$", True),
        ("42", "42", True),
        ("42", "it takes 42 hours, or 7", False),
        ("New York", "New York", True),
        ("42", " ", False),
    ],
)
def test_where_no_filter_extracts_an_answer_is_a_formula_or_stands_alone(
    monkeypatch: pytest.MonkeyPatch, gold: str, answer: str, formatted: bool
) -> None:
    problems = LmEvalProblems.__new__(LmEvalProblems)
    vars(problems).update(generative=True, filter="none", _fallbacks={})
    monkeypatch.setattr(LmEvalProblems, "gold", lambda self, group: gold)
    assert problems._formatted([SimpleNamespace(resps=[answer])]) == formatted


def test_a_task_file_is_graded_by_math_verify_where_it_says_so(roots: Roots) -> None:
    rows = [{"question": "?", "answer": answer} for answer in (r"\frac{1}{2}", "$x^2-1$", "8")]
    (roots.project / "data/sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = written(roots, metric_list=[{"metric": "math_verify"}, {"metric": "exact_match"}])
    (problems,) = loaded(roots, task)
    assert problems.metric == "math_verify"
    scores = problems.scores([["so 0.5"], [r"it is \boxed{(x-1)(x+1)}"], ["8"]])
    assert [score.correct for score in scores] == [1, 1, 1]
    assert [score.every["exact_match,none"] for score in scores] == [0, 0, 1]
    assert [score.correct for score in problems.scores([["1/3"], [r"\boxed{x^2}"], ["nothing"]])] == [0, 0, 0]


def test_an_unknown_task_is_refused_with_similar_names() -> None:
    with pytest.raises(InvalidInput, match=r"no task or group 'gsm9k'; did you mean .*gsm8k"):
        find_task("gsm9k")


@pytest.mark.parametrize("name", ["../gsm8k", "*", "gsm8k*", ""])
def test_a_name_is_no_pattern(name: str) -> None:
    with pytest.raises(InvalidInput):
        find_task(name)


def test_knowing_tasks_imports_neither_lm_eval_nor_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from latentbench.core.paths import Roots\n"
        "from latentbench.reasoning.accuracy import ReasoningAccuracy as R; from latentbench.reasoning.task_suite import *\n"
        "R(task='gsm8k').longest_answer(Roots(Path('.'))); installed_suite().identity('gsm8k', Roots(Path('.')), {})\n"
        "print(sorted({'torch', 'lm_eval', 'numpy', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_installed_suite_is_lm_evals() -> None:
    suite, roots = installed_suite(), Roots(Path())
    assert suite.suite_version() == lm_eval_version()
    assert suite.identity("aime24", roots, {}) == task_identity("aime24", roots)
    assert suite.open_datasets("gsm8k", roots) == ["openai/gsm8k"]
    assert suite.longest_answer("pocket_problems", roots) == 128


def test_the_identity_of_a_hub_task_names_its_dataset() -> None:
    identity = task_identity("gsm8k", Roots(Path()))
    assert identity["documents"][0]["hub"] == "openai/gsm8k"


# -- the pocket model's problems ------------------------------------------------------------------------------------


def test_pocket_problems_are_those_of_the_model_card() -> None:
    made = documents.test()["test"]
    first = next(text.problems("eval"))
    assert made[0] == {"question": first.question, "answer": str(first.answer)}
    assert len(made) == documents.TEST


def test_selection_problems_are_others() -> None:
    tested, selected = (set(made["test"]["question"]) for made in (documents.test(), documents.selection()))
    assert len(selected) > 400
    assert not tested & selected


def test_prompts_are_the_questions_and_answers_the_last_number() -> None:
    (problems,) = loaded(Roots(Path()), "pocket_problems", limit=3)
    (request,) = problems.groups[0]
    assert request.args[0] == next(text.problems("eval")).question
    gold = problems.gold(problems.groups[0])
    said = [f" To find out, 1 + 2 = 3. So {gold}.", f" {gold}. No: 0.", " nothing"]
    scores = [problems.scores([[answer]] * 3)[0] for answer in said]
    assert [score.correct for score in scores] == [1, 0, 0]
    assert [score.formatted for score in scores] == [True, True, False]


# -- task files -----------------------------------------------------------------------------------------------------


def test_a_task_file_with_local_data_is_loaded(roots: Roots) -> None:
    (problems,) = loaded(roots, written(roots), limit=4, num_fewshot=0, max_new_tokens=5)
    assert [group[0].args[0] for group in problems.groups] == [f"Q: {a} + {a}?\nA:" for a in range(4)]
    assert problems.groups[0][0].args[1]["max_gen_toks"] == 5
    assert [score.correct for score in problems.scores([["0"], ["2"], ["5"], ["6"]])] == [1, 1, 0, 1]


REFUSED = {
    "code": (None, "task: x\ndataset_path: json\ndoc_to_text: !function utils.evil\n", "code"),
    "python object": (None, "task: !!python/object/apply:os.system ['true']\n", "code"),
    "process_results": ({"process_results": "utils.evil"}, None, "process_results cannot be used"),
    "class": ({"class": "evil.Task"}, None, "class cannot be used"),
    "include": ({"include": "/etc/passwd"}, None, "include cannot be used"),
    "prompt": ({"use_prompt": "promptsource:x"}, None, "use_prompt cannot be used"),
    "custom": ({"custom_dataset": "x.y"}, None, "custom_dataset cannot be used"),
    "unsafe": ({"unsafe_code": True}, None, "unsafe_code cannot be used"),
    "hub metric": ({"metric_list": [{"metric": "bleu", "hf_evaluate": True}]}, None, "code from the hub"),
    "remote": (
        {"dataset_kwargs": {"data_files": "data/sums.jsonl", "trust_remote_code": True}},
        None,
        "trust_remote_code",
    ),
    "address": (
        {"dataset_kwargs": {"data_files": {"test": "https://example.org/x.json"}}},
        None,
        "files of the project",
    ),
    "script": ({"dataset_path": "./data/loader.py", "dataset_kwargs": {}}, None, "neither a hub id"),
    "folder": ({"dataset_path": "/etc", "dataset_kwargs": {}}, None, "neither a hub id"),
    "no data": ({"dataset_kwargs": {}}, None, "data_files"),
    "no map": (None, "- 1\n- 2\n", "map"),
    "no yaml": (None, "a: [1\n", r"^sums\.yaml:2:1: not YAML"),
    "no name": (None, "dataset_path: json\n", r"^sums\.yaml:1:1: task: is required"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_task_file_that_runs_code_or_is_malformed_is_refused(roots: Roots, case: str) -> None:
    changes, content, said = REFUSED[case]
    with pytest.raises(RefusedFile, match=said):
        read_task(written(roots, content, **(changes or {})), roots)


@pytest.mark.parametrize("file", ["../outside.jsonl", "/etc/hostname"])
def test_data_outside_of_the_project_is_refused(roots: Roots, file: str) -> None:
    with pytest.raises(RefusedFile, match=r"dataset_kwargs\.data_files: .*outside the project"):
        read_task(written(roots, dataset_kwargs={"data_files": {"test": file}}), roots)


def test_a_symbolic_link_does_not_lead_out(roots: Roots, tmp_path: Path) -> None:
    (roots.project / "data/link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(RefusedFile, match="outside the project"):
        read_task(written(roots, dataset_kwargs={"data_files": {"test": "data/link.jsonl"}}), roots)


def test_missing_files_are_named(roots: Roots) -> None:
    with pytest.raises(NotAvailable, match="no task file"):
        read_task("nowhere.yaml", roots)
    with pytest.raises(NotAvailable, match="no data file"):
        read_task(written(roots, dataset_kwargs={"data_files": {"test": "data/none.jsonl"}}), roots)


def test_a_template_cannot_reach_python(roots: Roots) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(LatentbenchError, match="unsafe"):
        loaded(roots, written(roots, doc_to_text=escape))


def test_what_lm_eval_refuses_is_said_in_one_message(roots: Roots) -> None:
    with pytest.raises(NotAvailable, match=r"cannot load the task 'sums\.yaml'"):
        loaded(roots, written(roots, doc_to_target="{{no_such_column}}"))


def test_the_identity_follows_content_and_not_place(roots: Roots, tmp_path: Path) -> None:
    before = task_identity(written(roots), roots)
    assert str(tmp_path) not in json.dumps(before)
    (roots.project / "data/sums.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    assert task_identity("sums.yaml", roots) != before


def test_paths_and_names_are_told_apart() -> None:
    assert [is_path(task) for task in ("gsm8k", "mine.yaml", "tasks/mine.yml", "./x")] == [False, True, True, True]


# -- answers kept ---------------------------------------------------------------------------------------------------


def test_answers_are_found_again(tmp_path: Path) -> None:
    answers = {f"k{i}": TaskAnswer(f"text {i} é\n\0", i, bool(i % 2)) for i in range(1200)}
    AnswerCache(tmp_path / "cache/answers.sqlite3").add(answers)
    again = AnswerCache(tmp_path / "cache/answers.sqlite3")
    assert again.known([*answers, "unknown"]) == answers


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers").write_bytes(b"\x80\x04not a database at all" * 100)
    with pytest.raises(StoreError, match="delete the file"):
        AnswerCache(tmp_path / "answers")
