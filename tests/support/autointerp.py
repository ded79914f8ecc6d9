"""A scripted judge and short ways to what a study built and found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import latentbench.autointerp.study as run_module
from latentbench.autointerp.metric import Autointerp
from latentbench.autointerp.prompts import OPEN
from latentbench.autointerp.scores import AutointerpDetails
from latentbench.autointerp.windows import LatentQuestions, Window
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from tests.support.labs import lab_of

Requests = Sequence[Sequence[Mapping[str, str]]]
PROTOCOL = Autointerp().protocol


class Scripted(Judge):
    """Answers truthfully about nothing; fails where `fails` says so."""

    adapter: str = "scripted"
    fails: str = ""
    answer: str = ""

    def identity(self, roots: Roots) -> Any:
        return "scripted"

    def chat(self, requests: Requests, roots: Roots, cache: Path) -> Iterator[Reply]:
        for messages in requests:
            system, user = (message["content"] for message in messages)
            kind = "explain" if '"explanation"' in system else "fuzz" if OPEN in system else "detect"
            questions = user.count("\n") - 1
            text = '{"explanation": "x"}' if kind == "explain" else json.dumps({"answers": [0] * questions})
            LOG.append((kind, system, user))
            yield Reply(None, "gone") if kind == self.fails else Reply(self.answer or text, None, 100, 10)


LOG: list[tuple[str, str, str]] = []


def asked(judge: Judge, **options: Any) -> Autointerp:
    return Autointerp.model_construct(**{**dict(Autointerp(**options)), "judge": judge})


def details_of(metric: Autointerp, *arguments: Any, **more: Any) -> AutointerpDetails:
    return AutointerpDetails.model_validate(metric.run(lab_of(*arguments, **more)).details)


def questions_of(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> list[LatentQuestions]:
    """The questions that a real run builds."""
    built: list[LatentQuestions | str] = []
    build = run_module.build_questions
    monkeypatch.setattr(run_module, "build_questions", lambda *a: built.append(build(*a)) or built[-1])
    Autointerp(**options).run(lab_of(*arguments))
    return [questions for questions in built if isinstance(questions, LatentQuestions)]


def window(text: str, active: Sequence[int] = (), document: int = 0, start: int = 0, strength: float = 1.0) -> Window:
    tokens = tuple(text.split())
    return Window(tokens, tuple(strength * (i in active) for i in range(len(tokens))), document, start)
