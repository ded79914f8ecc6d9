"""A judge's endpoint that dies half-way: what it answered is kept, the rest is asked when it is back, and nothing twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openai")

from adapters.judges.openai import OpenAIJudge
from adapters.protocols import Reply, Roots
from tests.support.chat_server import Answer, said, serving

Count = Callable[[str, object], None]
QUESTIONS = [[{"role": "user", "content": f"question {number}"}] for number in range(30)]


def echo(number: int, body: Answer) -> Answer:
    """Says what it was asked."""
    return said(f"re {body['messages'][-1]['content']}")


def dying(at: int) -> Callable[[int, Answer], Answer]:
    """Answers so many requests, and hangs up on every later one."""
    return lambda number, body: echo(number, body) if number < at else {"hang_up": True}


def ask(url: str, folder: Path) -> list[Reply]:
    judge = OpenAIJudge(base_url=url, model="m", retries=1, timeout=5, concurrency=3)
    return list(judge.chat(QUESTIONS, Roots(folder), folder / "cache"))


@pytest.mark.parametrize("seed", range(3))
def test_an_endpoint_that_dies_half_way(tmp_path: Path, seed: int, record_property: Count) -> None:
    at = random.Random(seed).randint(1, len(QUESTIONS) - 1)
    with serving(dying(at)) as server:
        before = ask(server.url, tmp_path)
        answered = [reply for reply in before if not reply.error]
        assert len(answered) == at
        assert all(reply.text.startswith("re question") for reply in answered)
        asked = len(server.bodies)
        server.script = echo
        after = ask(server.url, tmp_path)
        assert [reply.text for reply in after] == [f"re question {number}" for number in range(len(QUESTIONS))]
        assert not any(reply.error for reply in after)
        assert len(server.bodies) - asked == len(QUESTIONS) - at
    record_property("answered before", at)
    record_property("asked again", len(QUESTIONS) - at)
