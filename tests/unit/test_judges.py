"""Judges behind an endpoint: what its misbehaviour does, and where the key goes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from pydantic import ValidationError

from latentbench.autointerp.metric import Autointerp
from latentbench.autointerp.prompts import probabilities_in
from latentbench.core.errors import NotAvailable
from latentbench.core.paths import Roots
from latentbench_adapters.judges.openai import OpenAIJudge
from latentbench_adapters.judges.requests import RateLimit
from tests.support.chat_server import Answer, completion, packed, refused, said, serving
from tests.support.judges import KEY, ask, echo, files_under, judge, questions

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
        ({"body": "{not json"}, 2, "no chat completion: not JSON", True),
        ({"body": "[]"}, 2, "no chat completion", True),
        ({"body": '{"choices": []}'}, 2, "no chat completion: choices", True),
        ({"body": '{"choices": [{"message": null}]}'}, 2, "no chat completion: choices.0.message", True),
        ({"body": "[" * 5000}, 2, "no chat completion", True),
        (said(None), 1, "holds no text", False),
        (said(["a", "list"]), 1, "holds no text", False),
    ],
)
def test_what_stays_wrong_is_a_reply_with_an_error_and_not_kept(
    tmp_path: Path, answer: Answer, attempts: int, said_why: str, lost: bool
) -> None:
    with serving(lambda number, body: answer) as server:
        (reply,) = ask(server.url, 1, tmp_path, retries=max(1, attempts - 1))
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


@pytest.mark.parametrize(
    "absurd", ["1e9", "0.5", "NaN", "Infinity", "-Infinity", '"-0.1"', "true", "[-0.1]", "1" + "0" * 400]
)
@pytest.mark.parametrize("place", ["written", "alternative"])
def test_absurd_probabilities_are_no_answer(tmp_path: Path, absurd: str, place: str) -> None:
    """They cost one reply, which can be asked for again, and not the study."""
    body = graded("[1]", [("[", {}), ("1", {"1": -0.125, "0": -2.5}), ("]", {})])["body"]
    bad = (
        body.replace('"logprob": -0.1,', f'"logprob": {absurd},')
        if place == "written"
        else body.replace("-0.125", absurd)
    )
    assert bad != body
    script = lambda number, _: {"body": bad} if number == 0 else {"body": body}  # noqa: E731
    with serving(script) as server:
        replies = ask(server.url, 2, tmp_path, probabilities=True, concurrency=1, retries=0)
        assert [reply.lost for reply in replies] == [True, False]
        assert "no chat completion: choices.0.logprobs.content" in str(replies[0].error)
        again = ask(server.url, 2, tmp_path, probabilities=True, retries=0)
        assert [reply.ones for reply in again] == [{1: pytest.approx(1 / (1 + np.exp(-2.375)))}] * 2
        assert ask(server.url, 3, tmp_path, concurrency=1)[2].text == "[1]"


def test_more_alternatives_than_the_protocol_has_are_no_answer(tmp_path: Path) -> None:
    many = graded("1", [("1", {str(i): -1.0 for i in range(100_000)})])
    with serving(lambda number, body: many) as server:
        (reply,) = ask(server.url, 1, tmp_path, probabilities=True, retries=0)
    assert reply.lost
    assert "at most 20 items" in str(reply.error)


def test_probabilities_that_nobody_asked_for_are_not_looked_at(tmp_path: Path) -> None:
    body = graded("[1]", [("1", {"1": -0.125})])["body"].replace("-0.125", "1e9")
    with serving(lambda number, _: {"body": body}) as server:
        (reply,) = ask(server.url, 1, tmp_path)
    assert (reply.text, reply.ones) == ("[1]", None)


@pytest.mark.parametrize("count", ['"7"', "1e300", "-3", "true", "null", "[]", "1" + "0" * 30, "NaN"])
def test_absurd_counts_of_tokens_are_none(tmp_path: Path, count: str) -> None:
    body = said("yes")["body"].replace('"completion_tokens": 7', f'"completion_tokens": {count}')
    with serving(lambda number, _: {"body": body}) as server:
        (reply,) = ask(server.url, 1, tmp_path, retries=0)
    assert (reply.text, reply.prompt_tokens, reply.reply_tokens) == ("yes", 11, 0)


# --- how long, and how much ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["headers", "body"])
def test_the_timeout_is_for_the_whole_answer(tmp_path: Path, begin: str) -> None:
    """Each byte comes well within the time that the answer has."""
    with serving(lambda number, body: {**echo(number, body), "drip": 0.05, "from": begin}) as server:
        start = time.monotonic()
        (reply,) = ask(server.url, 1, tmp_path, timeout=0.5, retries=0)
        assert time.monotonic() - start < 3
    assert reply.lost
    assert "no whole answer within 0.5 s" in str(reply.error)


def test_waiting_for_ones_turn_is_not_in_the_timeout(tmp_path: Path) -> None:
    with serving(echo) as server:
        replies = ask(server.url, 6, tmp_path, timeout=0.5, retries=0, requests_per_minute=300)
    assert [reply.text for reply in replies] == [f"re question {i}" for i in range(6)]


def long_body(size: int) -> bytes:
    return json.dumps(completion("a" * size)).encode()


@pytest.mark.parametrize(
    ("answer", "said_why"),
    [
        ({"body": b" " * (1 << 16), "endless": True}, "longer than 8 MiB"),
        (packed(b" " * (400 << 20)), "longer than 8 MiB when unpacked"),
        (packed(packed(b" " * (400 << 20))["body"], "gzip, gzip"), "packed as 'gzip, gzip', which was not asked for"),
        (packed(long_body(5), "br"), "packed as 'br', which was not asked for"),
        (packed(long_body(5), "zstd"), "packed as 'zstd'"),
        (packed(long_body(5), "deflate"), "packed as 'deflate'"),
        ({**packed(b""), "body": long_body(5)}, "cannot be unpacked: Error -3"),
        ({**packed(b""), "body": packed(long_body(5))["body"][:-9]}, "cannot be unpacked: it ends too early"),
        ({"body": long_body(9 << 20)}, "longer than 8 MiB"),
        ({"body": b"[" * (7 << 20)}, "not JSON"),
        ({"body": b"1" * (7 << 20)}, "not JSON"),
    ],
)  # fmt: skip
def test_an_answer_has_a_longest_size(tmp_path: Path, answer: Answer, said_why: str) -> None:
    with serving(lambda number, body: answer) as server:
        ask(server.url, 0, tmp_path)  # what is imported for it
        tracemalloc.start()
        (reply,) = ask(server.url, 1, tmp_path, retries=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert reply.lost
    assert said_why in str(reply.error)
    assert peak < 64 << 20
    assert server.sent < 24 << 20  # with what the two ends of the connection hold


def test_a_long_answer_that_is_within_bounds_is_one(tmp_path: Path) -> None:
    with serving(lambda number, body: packed(long_body(7 << 20)) if number else {"body": long_body(7 << 20)}) as server:
        replies = ask(server.url, 2, tmp_path, retries=0, concurrency=1)
    assert [len(reply.text or "") for reply in replies] == [7 << 20] * 2


def test_an_error_whose_page_is_too_long_stays_that_error(tmp_path: Path) -> None:
    endless = {"body": b"<html>" * 10_000, "endless": True, "status": 400}
    with serving(lambda number, body: endless) as server:
        (reply,) = ask(server.url, 1, tmp_path, retries=0)
    assert (reply.lost, reply.error) == (False, "BadRequestError 400: Error code: 400")


@pytest.mark.parametrize(
    "answer",
    [
        {"body": "<html>Sign in to the network</html>", "headers": {"Content-Type": "text/html"}},
        {"body": said("yes")["body"][:-9]},
        {"body": '{"error": {"message": "overloaded", "code": 502}}'},
        {"body": '{"object": "list", "data": []}'},
        {"body": ""},
        {"body": "", "status": 204},
        {"body": b"\xff\xfe\x00"},
    ],
)  # fmt: skip
def test_what_is_no_answer_of_the_protocol_is_asked_for_again(tmp_path: Path, answer: Answer) -> None:
    with serving(lambda number, body: answer if number == 0 else echo(number, body)) as server:
        (reply,) = ask(server.url, 1, tmp_path, retries=1)
        assert reply.text == "re question 0"
        assert len(server.bodies) == 2
        server.script = lambda number, body: answer
        (reply,) = ask(server.url, 1, tmp_path, retries=0, model="other")
    assert reply.lost
    assert "the answer is no chat completion" in str(reply.error)
    assert ("overloaded" in str(reply.error)) == ("overloaded" in str(answer["body"]))


def test_asking_stops_when_nobody_listens(tmp_path: Path) -> None:
    """A study that gives up does not wait for what is under way."""
    first = "question 0"  # by what is asked: eight threads ask at once, and any of them may come first
    silent = {"delay": 5, "hang_up": True}
    with serving(lambda n, body: echo(n, body) if body["messages"][-1]["content"] == first else silent) as server:
        start = time.monotonic()
        replies = judge(server.url, timeout=60).chat(questions(8), Roots(tmp_path), tmp_path / "cache")
        assert next(iter(replies)).text == "re question 0"
        replies.close()  # type: ignore[attr-defined]
        assert time.monotonic() - start < 4


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


@pytest.mark.parametrize(
    "damage",
    [
        {"request": None},
        {"reply": 5},
        {"reply": {"text": 5}},
        {"reply": {"text": "x"}},
        {"reply": {"text": "x", "prompt_tokens": "1", "reply_tokens": 1}},
        {"reply": {"text": "x", "prompt_tokens": 1, "reply_tokens": 1, "ones": {"0": 1e9}}},
        {"reply": {"text": "x", "prompt_tokens": 1, "reply_tokens": 1, "ones": {"0": "1"}}},
        {"reply": {"text": "x", "prompt_tokens": 1, "reply_tokens": 1, "ones": {"a": 1}}},
    ],
)
def test_a_transcript_that_is_none_is_asked_for_again(tmp_path: Path, damage: Answer) -> None:
    with serving(echo) as server:
        ask(server.url, 1, tmp_path)
        (path,) = (tmp_path / "cache").rglob("*.json")
        whole = {**json.loads(path.read_text()), **damage}
        path.write_text(json.dumps({name: value for name, value in whole.items() if value is not None}))
        (reply,) = ask(server.url, 1, tmp_path)
    assert reply.text == "re question 0"
    assert len(server.bodies) == 2


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
    async def many(pace: RateLimit) -> None:
        for _ in range(1000):
            await pace.wait()

    start = time.monotonic()
    asyncio.run(many(RateLimit(None)))
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


ECHOES: dict[str, Callable[[str], str]] = {
    "its beginning": lambda key: key[:8],
    "its end": lambda key: key[-9:],
    "masked": lambda key: f"{key[:7]}{'*' * 20}{key[-4:]}",
    "dots": lambda key: f"{key[:3]}...{key[-4:]}",
    "an address": lambda key: quote(key, safe=""),
    "base64": lambda key: b64encode(f"user:{key}".encode()).decode(),
    "quoted": lambda key: json.dumps({"authorization": f"Bearer {key}"}),
}


@pytest.mark.parametrize("how", ECHOES)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_no_part_of_the_key_is_kept_or_shown(tmp_path: Path, how: str, status: int) -> None:
    echoed = ECHOES[how](KEY)
    body = completion(f"it is {echoed}") if status == 200 else {"error": {"message": f"it is {echoed}"}}
    with serving(lambda number, _: {"body": json.dumps(body), "status": status}) as server:
        replies = ask(server.url, 2, tmp_path, retries=0)
    everything = files_under(tmp_path) + str(replies)
    assert "it is" in everything
    assert "[key]" in everything
    assert echoed not in everything
    assert KEY[-4:] not in everything
    assert KEY[:5] not in everything


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
