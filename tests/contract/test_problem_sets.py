"""What every set of problems promises: an identity that changes with whatever the model then reads, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from latentbench.core.hashing import canonical
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugins
from latentbench.core.protocols import SLOT, ProblemSet
from latentbench_adapters.arithmetic.adapter import ArithmeticProblems
from latentbench_adapters.pocket.adapter import PocketProblems
from latentbench_adapters.problems import FileProblems, HuggingFaceProblems

WORDS = f"Solve this: {SLOT} Go."
EXAMPLES: dict[str, Callable[..., ProblemSet]] = {
    "arithmetic": lambda **fields: ArithmeticProblems(kind="word_problem", **fields),
    "files": lambda **fields: FileProblems(path="rows.jsonl", prompt=WORDS, **fields),
    "huggingface": lambda **fields: HuggingFaceProblems(id="a/b", revision="c" * 40, prompt=WORDS, **fields),
    "pocket": lambda **fields: PocketProblems(**fields),
}
CHANGES: list[dict[str, Any]] = [
    {"skip": 1},
    {"limit": 1},
    {"chat_template": True},
    {"chat_template": True, "system": "Think."},
    {"chat_template": True, "system": "Think"},
]


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "4?", "answer": "4"}\n')
    return Roots(tmp_path)


def test_every_registered_set_has_an_example_here() -> None:
    assert EXAMPLES.keys() == plugins("problems").keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_read_is_in_the_identity(name: str, roots: Roots) -> None:
    made = [EXAMPLES[name](**fields) for fields in ({}, *CHANGES)]
    assert len({canonical(problems.identity(roots)) for problems in made}) == len(made)
    for problems in made:
        assert type(problems).model_validate_json(json.dumps(problems.plain()), strict=True) == problems


@pytest.mark.parametrize("name", EXAMPLES)
def test_fields_that_records_do_not_know_are_written_only_where_they_say_something(name: str, roots: Roots) -> None:
    plain, chat = EXAMPLES[name](), EXAMPLES[name](chat_template=True)
    for written in (plain.plain(), plain.identity(roots)):
        assert not {"chat_template", "system"} & written.keys()
    assert chat.plain() == plain.plain() | {"chat_template": True}
    assert chat.identity(roots) == plain.identity(roots) | {"chat_template": True}


@pytest.mark.parametrize("name", ["files", "pocket"])
def test_the_form_is_how_the_questions_are_put(name: str, roots: Roots) -> None:
    problems = EXAMPLES[name](chat_template=True, system="Think.")
    assert problems.form is not None
    before, behind = problems.form.text.split(SLOT)
    for problem in islice(problems.problems(roots), 2):
        assert problem.prompt.startswith(before)
        assert problem.prompt.endswith(behind)
    assert (problems.form.chat_template, problems.form.system) == (True, "Think.")
    assert problems.form != EXAMPLES[name](chat_template=True).form != EXAMPLES[name]().form


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_system_instruction_needs_the_chat_template(name: str) -> None:
    with pytest.raises(ValidationError, match="set `chat_template: true` too"):
        EXAMPLES[name](system="Think.")
