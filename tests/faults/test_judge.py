"""A judge's endpoint that dies half-way or turns hostile: what it answered is kept, the rest is asked when it is back,
and nothing twice."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openai")

from latentbench.core.paths import Roots
from latentbench.core.protocols import Reply
from latentbench.core.text import one_line
from latentbench_adapters.judges.openai import OpenAIJudge
from tests.support.chat_server import Answer, said, serving
from tests.support.hostile_replies import hostile_reply
from tests.support.judges import KEY, files_under

Count = Callable[[str, object], None]
QUESTIONS = [[{"role": "user", "content": f"question {number}"}] for number in range(30)]


@pytest.fixture(autouse=True)
def _judge_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


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


def number_of(body: Answer) -> str:
    """Which question it is, whenever it comes."""
    return str(body["messages"][-1]["content"])


def hostile(folder: Path, count: int, note: Count) -> None:
    """Asks `count` questions of an endpoint that misbehaves in another way at each, and again when it is sound."""
    questions = [[{"role": "user", "content": f"question {number}"}] for number in range(count)]
    before = peak_bytes()
    with serving(lambda _, body: hostile_reply(number_of(body))) as server:
        judge = OpenAIJudge(
            base_url=server.url,
            model="m",
            key_env="JUDGE_KEY",
            retries=0,
            timeout=0.5,
            concurrency=4,
            probabilities=True,
        )
        replies = list(judge.chat(questions, Roots(folder), folder / "cache"))
        assert len(replies) == count
        for reply in replies:
            assert (reply.text is None) == bool(reply.error)
            assert reply.error is None or reply.error == one_line(reply.error)[:300]
            assert all(0 <= one <= 1 for one in (reply.ones or {}).values())
            assert min(reply.prompt_tokens, reply.reply_tokens) >= 0
        assert peak_bytes() - before < 1 << 29
        taken = sum(reply.text is not None for reply in replies)
        asked, server.script = len(server.bodies), echo
        patient = judge.model_copy(update={"timeout": 60.0})
        again = list(patient.chat(questions, Roots(folder), folder / "cache"))
        assert all(reply.text is not None for reply in again)
        assert len(server.bodies) - asked == count - taken
    everything = files_under(folder) + str(replies)
    assert not any(KEY[place : place + 8].lower() in everything.lower() for place in range(len(KEY) - 7))
    assert not any(piece in everything for piece in (KEY[-4:], KEY.encode().hex()[8:16]))
    note("hostile replies", count)
    note("taken as answers", taken)
    note("counted as lost", sum(reply.lost for reply in replies))


def peak_bytes() -> int:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_hostile_replies(tmp_path: Path, record_property: Count) -> None:
    hostile(tmp_path, 60, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_replies(tmp_path: Path, record_property: Count, seeds: int) -> None:
    hostile(tmp_path, 4 * seeds, record_property)
