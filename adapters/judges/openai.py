"""`adapter: openai`: a chat model behind any endpoint that speaks the OpenAI chat-completions protocol.

The key comes from an environment variable and is given to the client alone: it is in no spec, identity, transcript, error
or log, and is struck out of whatever the server sends back.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from adapters.judges.grades import ones_of
from adapters.judges.pace import Pace
from adapters.judges.transcripts import Transcripts
from adapters.protocols import Judge, Reply, Roots
from harness.errors import NotAvailable
from harness.section import Json
from harness.words import one_line

if TYPE_CHECKING:
    from openai import OpenAI

_TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers that, told to debug, write down headers, and with them whatever a server sends back."""
_NO_KEY = "none"
"""What is sent where no key is asked for; the client insists on one, and would otherwise take OPENAI_API_KEY."""
_STRUCK = "[key]"
_ALTERNATIVES = 5
"""Tokens whose probability is asked for at every place; the protocol allows 20, some servers only 5."""
_NOT_NOW = (401, 403, 404, 408, 409, 429)
"""Statuses below 500 that speak of the key, the model's name or the moment, not of the request."""
_LONGEST_ERROR = 300


def _plain_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{one_line(url)[:100]!r} is no http(s) address such as https://api.openai.com/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an address with a user, password or query could hold a secret; put the key into `key_env`")
    return url.rstrip("/")


class OpenAIJudge(Judge):
    """A chat model asked over HTTP, with retries, limits and a transcript of every answer."""

    adapter: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(_plain_address)]
    """The endpoint up to `/v1`, e.g. `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the model there; name a dated version where there is one."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the key, e.g. `OPENAI_API_KEY`; none for an endpoint that asks for none."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """Sampling temperature; null leaves it to the endpoint (some models accept none)."""
    seed: int | None = 0
    """Sampling seed, where the endpoint knows one; null does not send it."""
    max_tokens: PositiveInt = 1024
    """Longest reply, thoughts included."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the endpoint calls that limit; newer models of OpenAI want the second."""
    probabilities: bool = False
    """Whether to ask for the log-probabilities of its labels, which AUROC needs; not every endpoint gives them."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    """How long a reasoning model thinks; null does not send it."""
    retries: NonNegativeInt = 5
    """Further attempts after 408, 409, 429, 5xx, a timeout or a broken connection, with exponential backoff (or as long as
    the server says)."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for one answer."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests under way at once."""
    requests_per_minute: PositiveFloat | None = None
    """Rate limit, retries included."""
    unanswered: Literal["fail", "count"] = "fail"
    """What becomes of requests that the endpoint did not answer, retries included: the cell fails and the next run asks
    just these, or they count among the judge's failures."""

    handling: ClassVar[frozenset[str]] = frozenset(
        {"key_env", "retries", "timeout", "concurrency", "requests_per_minute"}
    )

    @property
    def graded(self) -> bool:
        return self.probabilities

    @property
    def label(self) -> str:
        sampling = "" if self.temperature == 0 else f" temperature={self.temperature}"
        effort = "" if self.reasoning_effort is None else f" reasoning={self.reasoning_effort}"
        return f"{self.model}@{urlsplit(self.base_url).netloc}{sampling}{effort}"

    def identity(self, roots: Roots) -> Json:
        return {"openai": self.base_url, **self._settings()}

    def chat(self, requests: Sequence[Sequence[Mapping[str, str]]], roots: Roots, cache: Path) -> Iterator[Reply]:
        """Raises NotAvailable when the key is missing."""
        key, transcripts = self._key(), Transcripts(cache)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        waiting: deque[Future[Reply]] = deque()
        try:
            with self._client(key) as client:
                for messages in requests:
                    request = self._request(messages)
                    waiting.append(pool.submit(_answer, client, request, self.base_url, transcripts, key))
                    if len(waiting) >= 2 * self.concurrency:
                        yield self._counted(waiting.popleft().result())
                while waiting:
                    yield self._counted(waiting.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _counted(self, reply: Reply) -> Reply:
        return replace(reply, lost=False) if self.unanswered == "count" else reply

    def _settings(self) -> dict[str, Json]:
        """What is sent besides the messages."""
        optional = {"temperature": self.temperature, "seed": self.seed, "reasoning_effort": self.reasoning_effort}
        sent = {name: value for name, value in optional.items() if value is not None}
        graded = {"logprobs": True, "top_logprobs": _ALTERNATIVES} if self.probabilities else {}
        return {"model": self.model, self.limit_field: self.max_tokens, **sent, **graded}

    def _request(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Json]:
        return {**self._settings(), "messages": [dict(message) for message in messages]}

    def _key(self) -> str:
        if self.key_env is None:
            return _NO_KEY
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise NotAvailable(f"the judge {self.model!r} needs a key: set the environment variable {self.key_env}")
        if not key.isascii() or not key.isprintable():
            raise NotAvailable(f"the environment variable {self.key_env} holds characters that no key can have")
        return key

    def _client(self, key: str) -> OpenAI:
        from openai import DefaultHttpxClient, OpenAI

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        pace = Pace(self.requests_per_minute)
        # A redirect could carry the request somewhere else; hooks see every attempt, retries included.
        http = DefaultHttpxClient(follow_redirects=False, event_hooks={"request": [lambda _: pace.wait()]})
        return OpenAI(
            api_key=key, base_url=self.base_url, timeout=self.timeout, max_retries=self.retries, http_client=http
        )


def _answer(client: OpenAI, request: dict[str, Json], address: str, transcripts: Transcripts, key: str) -> Reply:
    """The reply from the transcripts or the server; whatever the server does wrong is a reply with an error."""
    from openai import OpenAIError

    kept = transcripts.get({"address": address, **request})
    if kept is not None:
        return kept
    try:
        response = client.chat.completions.create(**request)
        reply = _reply(response, key)
    except (OpenAIError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        # Third-party types: a body that is not what the protocol says breaks them in many ways.
        return Reply(None, _said(error, key), lost=_lost(error))
    if reply.text is not None:
        transcripts.put({"address": address, **request}, reply)
    return reply


def _reply(response: object, key: str) -> Reply:
    """The text and its cost from a response of the protocol. Raises when it is none."""
    choice = response.choices[0]  # type: ignore[attr-defined]
    text, usage = choice.message.content, getattr(response, "usage", None)
    read, written = (_count(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(text, str):
        return Reply(None, "the answer holds no text", read, written)
    text = _struck(text.encode(errors="replace").decode(), key)
    return Reply(text, None, read, written, ones=_ones(choice, text))


def _ones(choice: object, text: str) -> dict[int, float] | None:
    """See `Reply.ones`; None unless the log-probabilities are those of exactly this text."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    if not content or "".join(step.token for step in content) != text:
        return None
    return ones_of((step.token, {other.token: exp(other.logprob) for other in step.top_logprobs}) for step in content)


def _lost(error: Exception) -> bool:
    """Whether the endpoint gave no answer of its own; what it refuses to answer (400, 422) it would refuse again."""
    from openai import APIConnectionError

    status = getattr(error, "status_code", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _NOT_NOW
    return isinstance(error, APIConnectionError) or (isinstance(status, int) and not refused)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _said(error: Exception, key: str) -> str:
    status = getattr(error, "status_code", None)
    kind = f"{type(error).__name__}{f' {status}' if isinstance(status, int) else ''}"
    return one_line(_struck(f"{kind}: {error}", key))[:_LONGEST_ERROR]


def _struck(text: str, key: str) -> str:
    return text if key == _NO_KEY else text.replace(key, _STRUCK)
