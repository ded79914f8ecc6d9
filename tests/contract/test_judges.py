"""What every judge promises."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentbench.autointerp.lexical_judge import LexicalJudge
from latentbench.core.errors import NotAvailable
from latentbench.core.hashing import canonical
from latentbench.core.judges import RuleJudge
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugins
from latentbench.core.protocols import Judge, Reply
from latentbench_adapters.judges.openai import OpenAIJudge
from latentbench_adapters.judges.transformers import TransformersJudge, _ones
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support.chat_server import said, serving
from tests.support.project import Workbench

EXAMPLES: dict[str, Callable[[], Judge]] = {
    "lexical": LexicalJudge,
    "openai": lambda: OpenAIJudge(base_url="http://localhost:8000/v1", model="m", key_env="KEY"),
    "transformers": lambda: TransformersJudge(id="./model", max_tokens=8),
}

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def roots(bench: Workbench) -> Roots:
    return bench.project.roots


@pytest.fixture
def chat_roots(bench: Workbench) -> Roots:
    """The tiny model with a chat template."""
    bench.write("model/chat_template.jinja", TEMPLATE)
    return bench.project.roots


def test_every_registered_judge_has_an_example_here() -> None:
    assert EXAMPLES.keys() == plugins("judges").keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_identity_is_json_stable_and_free_of_local_paths(name: str, roots: Roots, tmp_path: Path) -> None:
    judge = EXAMPLES[name]()
    identity = judge.identity(roots)
    assert json.loads(canonical(identity)) == identity
    for path in (tmp_path, roots.project, Path.home(), Path.cwd()):
        assert str(path) not in canonical(identity)
    moved = shutil.copytree(roots.project, tmp_path / "moved")
    assert judge.identity(Roots(moved)) == identity


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_judge_survives_the_way_to_a_worker(name: str) -> None:
    judge = EXAMPLES[name]()
    assert type(judge).model_validate_json(json.dumps(judge.plain()), strict=True) == judge
    assert hash(judge) == hash(EXAMPLES[name]())


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_judge_has_a_short_label(name: str) -> None:
    judge = EXAMPLES[name]()
    assert 0 < len(judge.label) < 80
    assert "\n" not in judge.label
    assert len({EXAMPLES[other]().label for other in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_importing_a_judge_imports_nothing_heavy(name: str) -> None:
    module = type(EXAMPLES[name]()).__module__
    heavy = "'torch', 'numpy', 'pandas', 'scipy', 'openai', 'transformers'"
    code = f"import sys, {module}; found = {{m for m in sys.modules if m in ({heavy})}}; assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def ask(judge: Judge, roots: Roots, *questions: str) -> list[Reply]:
    requests = [[{"role": "system", "content": "ore salt"}, {"role": "user", "content": q}] for q in questions]
    return list(judge.chat(requests, roots, roots.project / "cache"))


def test_chat_judges_answer_in_order_and_remember(chat_roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda number, body: said(body["messages"][-1]["content"])) as server:
        for judge in (OpenAIJudge(base_url=server.url, model="m"), EXAMPLES["transformers"]()):
            assert not isinstance(judge, RuleJudge)
            first = ask(judge, chat_roots, "gas metal", "water")
            assert all(reply.text is not None and reply.error is None for reply in first)
            assert all(reply.prompt_tokens > 0 and reply.reply_tokens > 0 for reply in first)
            assert ask(judge, chat_roots, "water", "gas metal") == first[::-1]


def test_a_model_without_a_chat_template_is_refused(roots: Roots) -> None:
    with pytest.raises(NotAvailable, match="no chat template"):
        ask(TransformersJudge(id="./model", max_tokens=9), roots, "gas")


def test_a_question_that_does_not_fit_is_a_failed_reply(chat_roots: Roots) -> None:
    (reply,) = ask(TransformersJudge(id="./model", max_tokens=8), chat_roots, "gas " * 60)
    assert reply.text is None
    assert "leaves no room" in str(reply.error)


def test_the_reply_does_not_hold_the_question(chat_roots: Roots) -> None:
    (reply,) = ask(TransformersJudge(id="./model", max_tokens=4), chat_roots, "gas metal")
    assert reply.reply_tokens <= 4
    assert len(str(reply.text).split()) <= 4


def test_a_local_judge_stays_in_the_project(roots: Roots) -> None:
    with pytest.raises((NotAvailable, ValueError)):
        TransformersJudge(id="../../elsewhere").identity(roots)


def test_the_local_model_says_how_sure_it_was_of_its_labels(roots: Roots) -> None:
    """Logits as if `1` were three times as likely as `0`, at the two digits of a reply written in the pocket's tokens."""
    tokenizer = PocketModel().load_tokenizer(roots)
    written = torch.tensor(tokenizer.encode("[0, 1]", add_special_tokens=False))
    likely = torch.full((1, len(tokenizer)), -50.0, dtype=torch.float64)
    for label, weight in (("0", 1.0), ("1", 3.0)):
        (token,) = tokenizer.encode(label, add_special_tokens=False)
        likely[0, token] = math.log(weight)
    ones = _ones(tokenizer, written, [likely] * len(written))
    text = tokenizer.decode(written)
    assert {text[place] for place in ones} == {"0", "1"}
    assert list(ones.values()) == pytest.approx([0.75, 0.75])
