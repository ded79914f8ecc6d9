"""Model folders of others that are broken on purpose: each is read, or refused with one sentence, in little time and memory."""

from __future__ import annotations

import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentbench.activations.tokens import evaluation_tokens
from latentbench.core.errors import LatentbenchError
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.hostile_models import sharded, spoil
from tests.support.project import documents

Count = Callable[[str, object], None]
MOST_SECONDS, MOST_BYTES = 20.0, 1 << 30
TEXTS = [*documents(3), "a" * 5000 + "c", "", "\U0001f600\u0301 \x00"]


def answers(root: Path) -> list[bool]:
    """For everything that is asked of a model folder, whether there was an answer; if not, there must be a sentence."""
    model, roots = TransformersModel(id="./model"), Roots(root)
    questions: list[Callable[[], object]] = [
        lambda: model.identity(roots),
        lambda: model.facts(roots),
        lambda: model.hook_module(roots, Site(index=1)),
        lambda: evaluation_tokens(TEXTS, model.load_tokenizer(roots), context=16),
        lambda: model.load(roots, torch.device("cpu")),
    ]
    said = [_refusal(question) for question in questions]
    assert not [sentence for sentence in said if sentence and ("\n" in sentence or len(sentence) > 1000)]
    return [sentence is None for sentence in said]


def _refusal(question: Callable[[], object]) -> str | None:
    try:
        question()
    except LatentbenchError as error:
        return str(error)
    return None


def _peak() -> int:
    """Most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def attack(root: Path, model: Path, times: int, count: Count) -> None:
    """Spoils so many folders, every second one with its weights in two files, and asks about each."""
    generator, refused = random.Random(times), 0
    shutil.copytree(model, root / "model")
    assert all(answers(root))
    before = _peak()
    for number in range(times):
        shutil.rmtree(root / "model")
        shutil.copytree(model, root / "model")
        if number % 2:
            sharded(root / "model")
        done, started = spoil(root / "model", generator), time.perf_counter()
        try:
            refused += not all(answers(root))
        except Exception as error:
            raise AssertionError(f"folder {number} of {times}: {done}") from error
        assert time.perf_counter() - started < MOST_SECONDS, done
        assert _peak() - before < MOST_BYTES, done
    count("folders", times)
    count("refused", refused)
    assert refused > times // 4


def test_spoilt_model_folders_are_refused(tmp_path: Path, tiny_model: Path, record_property: Count) -> None:
    attack(tmp_path, tiny_model, 25, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_spoilt_model_folders_are_refused(
    tmp_path: Path, tiny_model: Path, record_property: Count, request: pytest.FixtureRequest
) -> None:
    folders = int(request.config.getoption("--folders", default=500))
    attack(tmp_path, tiny_model, folders, record_property)
