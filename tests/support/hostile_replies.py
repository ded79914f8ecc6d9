"""What a broken or hostile endpoint may send where an answer of the chat-completions protocol is asked for, by a seed."""

from __future__ import annotations

import json
import math
import random
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import quote

from tests.support.chat_server import Answer, completion, packed, said
from tests.support.hostile import STRANGE, changed, places
from tests.support.judges import KEY

_ABSURD = [*STRANGE, 1e9, math.nan, math.inf, -math.inf, 10**400, 0.5, "\ud800", [[]] * 1000]
_HEADERS = [
    {"Content-Type": "text/html; charset=utf-7"},
    {"Retry-After": "nan"},
    {"Retry-After": "-1e308"},
    {"retry-after-ms": "0.001", "x-should-retry": "true"},
    {"Location": "http://127.0.0.1:9/"},
    {"Set-Cookie": "a=" + "b" * 4000},
    {"X-Long": "c" * 60_000},
    {"Content-Type": ""},
]


def graded_body() -> Answer:
    """A good answer with log-probabilities."""
    text = ['{"answers": [', "0", ", ", "1", "]}"]
    body = completion("".join(text))
    step = {"logprob": -0.5, "top_logprobs": [{"token": "0", "logprob": -0.5}, {"token": "1", "logprob": -1.5}]}
    body["choices"][0]["logprobs"] = {"content": [{"token": token, **step} for token in text]}
    return body


def _mutated(rng: random.Random) -> Answer:
    tree = graded_body()
    for _ in range(rng.choice([1, 1, 2, 5])):
        if isinstance(tree, dict | list):
            how = rng.choice(["replace", "replace", "replace", "remove", "wrap", "add", "rename"])
            tree = changed(tree, rng.choice(places(tree)), how, rng.choice(_ABSURD))
    return {"body": json.dumps(tree)}


def _noisy(rng: random.Random) -> Answer:
    body = bytearray(json.dumps(graded_body()).encode())
    for _ in range(rng.choice([1, 3, 50])):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return {"body": bytes(body)}


def _cut(rng: random.Random) -> Answer:
    body = json.dumps(graded_body())
    return {"body": body[: rng.randrange(len(body))]}


def _page(rng: random.Random) -> Answer:
    return {"body": f"<html>{rng.random()}</html>", "status": rng.choice([200, 200, 203, 302, 404, 502])}


def _refusing(rng: random.Random) -> Answer:
    body = rng.choice(['{"error": "no"}', '{"error": []}', "[[]]", '"x"', "[" * 9000, "", '{"error": {"message": 5}}'])
    return {"body": body, "status": rng.choice([400, 401, 403, 404, 409, 422, 429, 451, 500, 503, 599])}


def _packing(rng: random.Random) -> Answer:
    good = json.dumps(graded_body()).encode()
    answer = packed(good, rng.choice(["gzip", "gzip", "br", "zstd", "deflate", "identity", "gzip, gzip"]))
    return {**answer, "body": answer["body"][: rng.randint(1, len(answer["body"]))]} if rng.random() < 0.5 else answer


def _large(rng: random.Random) -> Answer:
    piece = rng.choice([b"[],", b"{},", b"0,", b'"",', b" "])
    body = b'{"choices": [' + piece * ((7 << 20) // len(piece))
    where = rng.choice([b"]}", b'0], "usage": 1}', b""])
    bomb = b'{"choices": [' + b" " * (64 << 20)
    return rng.choice([{"body": body + where}, packed(bomb), {"body": b"{" * 9999, "endless": True}])


def _slow(rng: random.Random) -> Answer:
    good = json.dumps(graded_body())
    drip = {"body": good, "drip": 0.02, "from": rng.choice(["headers", "body"])}
    return rng.choice([drip, {"body": good, "delay": 1.0}])


def _headed(rng: random.Random) -> Answer:
    return {
        "body": json.dumps(graded_body()),
        "headers": rng.choice(_HEADERS),
        "status": rng.choice([200, 200, 307, 500]),
    }


def _telling(rng: random.Random) -> Answer:
    start = rng.randrange(len(KEY) - 8)
    forms = [
        KEY, KEY[start : start + 8], quote(KEY, safe=""), b64encode(f"x:{KEY}".encode()).decode(), KEY.upper(),
        f"{KEY[:4]}...{KEY[-4:]}", f"{KEY[:3]}{'*' * 30}{KEY[-4:]}", KEY.encode().hex(),
    ]  # fmt: skip
    text = f"the key {rng.choice(forms)} is wrong"
    return rng.choice([said(text), {"status": 401, "body": json.dumps({"error": {"message": text}})}, {"body": text}])


KINDS: list[Callable[[random.Random], Answer]] = [
    *[_mutated] * 8, *[_noisy] * 3, *[_cut] * 2, _page, _refusing, _refusing, _packing, _packing, _large, _slow, _headed,
    _telling, _telling, lambda rng: {"hang_up": True},
]  # fmt: skip


def hostile_reply(seed: str) -> Answer:
    """An answer of a script of `chat_server`."""
    rng = random.Random(seed)
    return rng.choice(KINDS)(rng)
