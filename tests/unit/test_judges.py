"""Judges behind an endpoint: what its misbehaviour does, and where the key goes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from adapters.judges.openai import OpenAIJudge
from adapters.judges.pace import Pace
from adapters.protocols import Roots
from harness.errors import NotAvailable
from harness.metrics.autointerp.answers import probabilities_in
from harness.metrics.autointerp.metric import Autointerp
from tests.support.chat_server import Answer, refused, said, serving
from tests.support.judges import KEY, ask, echo, files_under, judge

pytestmark = pytest.mark.usefixtures("judge_key")


# --- the endpoint ---------------------------------------------------------------------------------------------------


def test_replies_come_in_order_with_their_cost(tmp_path: Path) -> None:
    with serving(echo) as server:
        replies = ask(server.url, 20, tmp_path)
    assert [reply.text for reply in replies] == [f"re question {i}" for i in range(20)]
    assert {(reply.prompt_tokens, reply.reply_tokens, reply.error) for reply in replies} == {(11, 7, None)}
    assert server.keys == {f"Bearer {KEY}"}
    sent = server.bodies[0]
    assert {name: sent[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "m", "temperature": 0.0, "seed": 0, "max_tokens": 1024,
    }  # fmt: skip


@pytest.mark.parametrize("trouble", [refused(429), refused(500), refused(503), {"hang_up": True}])
def test_passing_trouble_is_retried(tmp_path: Path, trouble: Answer) -> None:
    with serving(lambda number, body: trouble if number == 0 else echo(number, body)) as server:
        (reply,) = ask(server.url, 1, tmp_path)
    assert reply.text == "re question 0"
    assert len(server.bodies) == 2


def test_a_timeout_is_retried(tmp_path: Path) -> None:
    with serving(lambda number, body: {**echo(number, body), "delay": 0.6 if number == 0 else 0}) as server:
        (reply,) = ask(server.url, 1, tmp_path, timeout=0.2)
    assert reply.text == "re question 0"


@pytest.mark.parametrize(
    ("answer", "attempts", "said_why", "lost"),
    [
        (refused(500), 4, "InternalServerError 500", True),
        (refused(429), 4, "RateLimitError 429", True),
        (refused(401), 1, "AuthenticationError 401", True),
        (refused(307, Location="http://127.0.0.1:9/v1"), 1, "307", True),
        ({"hang_up": True}, 4, "Connection", True),
        (refused(400), 1, "BadRequestError 400", False),
        (refused(422), 1, "422", False),
        ({"body": "{not json"}, 1, "", False),
        ({"body": "[]"}, 1, "", False),
        ({"body": '{"choices": []}'}, 1, "IndexError", False),
        ({"body": '{"choices": [{"message": null}]}'}, 1, "AttributeError", False),
        ({"body": "[" * 5000}, 1, "", False),
        (said(None), 1, "holds no text", False),
        (said(["a", "list"]), 1, "holds no text", False),
    ],
)
def test_what_stays_wrong_is_a_reply_with_an_error_and_not_kept(
    tmp_path: Path, answer: Answer, attempts: int, said_why: str, lost: bool
) -> None:
    with serving(lambda number, body: answer) as server:
        (reply,) = ask(server.url, 1, tmp_path)
        assert reply.text is None
        assert reply.lost is lost
        assert reply.error
        assert said_why in reply.error
        assert len(server.bodies) == attempts
        server.script = echo
        assert ask(server.url, 1, tmp_path)[0].text == "re question 0"


def test_unanswered_requests_can_be_counted(tmp_path: Path) -> None:
    with serving(lambda number, body: refused(500)) as server:
        (reply,) = ask(server.url, 1, tmp_path, unanswered="count", retries=0)
    assert reply.text is None
    assert not reply.lost


def test_what_says_how_to_ask_is_in_no_key() -> None:
    asked = Autointerp(judge=judge("http://localhost:1/v1"), max_requests=5)
    otherwise = Autointerp(judge=judge("http://localhost:1/v1", retries=9, timeout=1, concurrency=2, key_env="B"))
    assert asked.determining() == otherwise.determining()
    assert asked.determining() != Autointerp(judge=judge("http://localhost:1/v1", seed=1)).determining()
    assert asked.plain() != otherwise.plain()


def graded(text: str, tokens: list[tuple[str, dict[str, float]]]) -> Answer:
    """A reply with log-probabilities."""
    body = json.loads(said(text)["body"])
    content = [
        {"token": token, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": p} for t, p in others.items()]}
        for token, others in tokens
    ]
    body["choices"][0]["logprobs"] = {"content": content}
    return {"body": json.dumps(body)}


def test_an_endpoint_that_gives_probabilities_is_asked_for_them(tmp_path: Path) -> None:
    steps = [('{"answers": [', {}), ("1", {"1": -0.1, "0": -2.4}), (",", {}), (" 0", {" 0": -0.3, "1": -1.5})]
    text = "".join(token for token, _ in steps)
    with serving(lambda number, body: graded(text, steps)) as server:
        (reply,) = ask(server.url, 1, tmp_path, probabilities=True)
        (kept,) = ask(server.url, 1, tmp_path, probabilities=True)
        assert server.bodies[0]["logprobs"] is True
        assert len(server.bodies) == 1
    sure = [np.exp(-0.1) / (np.exp(-0.1) + np.exp(-2.4)), np.exp(-1.5) / (np.exp(-0.3) + np.exp(-1.5))]
    assert reply.ones == {13: pytest.approx(sure[0]), 16: pytest.approx(sure[1])}
    assert kept.ones == reply.ones
    assert probabilities_in(text + "]}", reply.ones, 2) == pytest.approx(tuple(sure))


def test_probabilities_of_another_text_are_none(tmp_path: Path) -> None:
    with serving(lambda number, body: graded("[1]", [("1", {"1": -0.1})])) as server:
        (reply,) = ask(server.url, 1, tmp_path, probabilities=True)
    assert reply.ones is None


def test_one_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = "question 3"
    with serving(lambda n, body: refused(400) if body["messages"][-1]["content"] == bad else echo(n, body)) as server:
        replies = ask(server.url, 6, tmp_path)
    assert [reply.text is None for reply in replies] == [False, False, False, True, False, False]


def test_no_request_is_repeated(tmp_path: Path) -> None:
    with serving(echo) as server:
        first = ask(server.url, 12, tmp_path)
        assert ask(server.url, 12, tmp_path) == first
        assert len(server.bodies) == 12
        ask(server.url, 1, tmp_path, temperature=0.5)
        ask(server.url, 1, tmp_path, model="other")
        assert len(server.bodies) == 14
        for path in (tmp_path / "cache").rglob("*.json"):
            path.write_text(path.read_text()[:-20])
        assert ask(server.url, 12, tmp_path) == first


def test_no_more_are_under_way_than_allowed(tmp_path: Path) -> None:
    with serving(lambda number, body: {**echo(number, body), "delay": 0.03}) as server:
        ask(server.url, 12, tmp_path, concurrency=3)
    assert server.most_at_once == 3


def test_the_rate_limit_holds_and_counts_retries(tmp_path: Path) -> None:
    with serving(lambda number, body: refused(429) if number % 2 else echo(number, body)) as server:
        ask(server.url, 4, tmp_path, requests_per_minute=1200, retries=8)
    spacing = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert len(server.times) > 4
    assert (server.times[-1] - server.times[0]) / len(spacing) >= 0.045


def test_pace_without_a_limit_never_waits() -> None:
    pace, start = Pace(None), time.monotonic()
    for _ in range(1000):
        pace.wait()
    assert time.monotonic() - start < 0.5


# --- the key --------------------------------------------------------------------------------------------------------


def test_the_key_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even when the server sends it back: in answers, in errors, in headers."""
    caplog.set_level(logging.DEBUG)

    def spiteful(number: int, body: Answer) -> Answer:
        text = f"your key is {body['authorization']}"
        if number % 3 == 0:
            return said(text)
        answer = refused(401 if number % 3 == 1 else 500, **{"x-should-retry": "false", "x-request-id": KEY})
        return {**answer, "body": json.dumps({"error": {"message": text}})}

    with serving(spiteful) as server:
        replies = ask(server.url, 9, tmp_path, concurrency=1)
    assert {bool(reply.error) for reply in replies} == {True, False}
    judged = judge(server.url)
    everything = (
        files_under(tmp_path), str(replies), caplog.text, *capfd.readouterr(), repr(judged), str(judged.plain()),
        str(judged.identity(Roots(tmp_path))), judged.label,
    )  # fmt: skip
    assert "your key is Bearer [key]" in everything[0]
    assert not any(KEY in text for text in everything)


@pytest.mark.parametrize("value", [None, "", "  ", "a\nb", "ключ"])
def test_a_missing_or_broken_key_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.delenv("JUDGE_KEY") if value is None else monkeypatch.setenv("JUDGE_KEY", value)
    with serving(echo) as server, pytest.raises(NotAvailable, match="JUDGE_KEY"):
        ask(server.url, 1, tmp_path)
    assert server.bodies == []


def test_without_key_env_no_key_is_sent_not_even_one_that_lies_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(echo) as server:
        ask(server.url, 1, tmp_path, key_env=None)
    assert server.keys == {"Bearer none"}


@pytest.mark.parametrize(
    "address",
    ["http://user:secret@host/v1", "https://host/v1?key=secret", "ftp://host", "localhost:8000", "", "http://host#x"],
)
def test_addresses_that_could_hold_a_secret_are_refused(address: str) -> None:
    with pytest.raises(ValidationError):
        OpenAIJudge(base_url=address, model="m")
