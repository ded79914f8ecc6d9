"""`adapter: openai`: a chat model behind any endpoint that speaks the OpenAI chat-completions protocol.

The key comes from an environment variable and is given to the client alone: it is in no spec, identity, transcript, error
or log, and is struck out of whatever the server sends back (`secret.py`). An answer is bounded in time and size
(`http_client.py`) and checked (`completion.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from latentbench.core.errors import NotAvailable
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from latentbench.core.spec_model import Json
from latentbench.core.text import one_line
from latentbench_adapters.judges.completion import reply_in
from latentbench_adapters.judges.requests import RateLimit, Transcripts, event_loop
from latentbench_adapters.judges.secret import Secret

if TYPE_CHECKING:
    from concurrent.futures import Future

    from openai import AsyncOpenAI

_TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers that, told to debug, write down headers, and with them whatever a server sends back."""
_NO_KEY = "none"
"""What is sent where no key is asked for; the client insists on one, and would otherwise take OPENAI_API_KEY."""
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
    """Further attempts after 408, 409, 429, 5xx, a timeout, a broken connection or something that is no answer of the
    protocol (a page, half a JSON, more than 8 MiB), with exponential backoff (or as long as the server says)."""
    timeout: PositiveFloat = 120.0
    """Seconds that one attempt may take, from the connection to the last byte of the answer."""
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
        waiting: deque[Future[Reply]] = deque()
        with event_loop() as loop, self._endpoint(loop, Transcripts(cache)) as endpoint:
            try:
                for messages in requests:
                    asking = endpoint.reply(self._request(messages))
                    waiting.append(asyncio.run_coroutine_threadsafe(asking, loop))
                    if len(waiting) >= 2 * self.concurrency:  # more than are under way, so one slow answer idles none
                        yield self._counted(waiting.popleft().result())
                while waiting:
                    yield self._counted(waiting.popleft().result())
            finally:
                for left in waiting:
                    left.cancel()

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

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise NotAvailable(f"the judge {self.model!r} needs a key: set the environment variable {self.key_env}")
        if not key.isascii() or not key.isprintable():
            raise NotAvailable(f"the environment variable {self.key_env} holds characters that no key can have")
        return key

    @contextmanager
    def _endpoint(self, loop: asyncio.AbstractEventLoop, transcripts: Transcripts) -> Iterator[_Endpoint]:
        key = self._key()
        client, gate = self._client(key), asyncio.Semaphore(self.concurrency)
        try:
            yield _Endpoint(client, self.base_url, transcripts, Secret(key), gate, self.probabilities)
        finally:
            asyncio.run_coroutine_threadsafe(client.close(), loop).result()

    def _client(self, key: str | None) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        from latentbench_adapters.judges.http_client import BoundedClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        http = BoundedClient(seconds=self.timeout, rate=RateLimit(self.requests_per_minute), graded=self.probabilities)
        return AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=http,
        )


@dataclass(frozen=True)
class _Endpoint:
    """Where requests go, and what is done with what comes back."""

    client: AsyncOpenAI
    address: str
    transcripts: Transcripts
    secret: Secret
    gate: asyncio.Semaphore
    graded: bool

    async def reply(self, request: dict[str, Json]) -> Reply:
        """From the transcripts or the server; whatever the server does wrong is a reply with an error.

        Files are read and written in threads: the loop has other requests to attend to.
        """
        async with self.gate:
            question = {"address": self.address, **request}
            kept = await asyncio.to_thread(self.transcripts.get, question)
            if kept is not None:
                return kept
            reply = await asyncio.to_thread(self.secret.struck_from, await self._asked(request))
            reply = replace(reply, error=reply.error and one_line(reply.error)[:_LONGEST_ERROR])
            if reply.text is not None:
                await asyncio.to_thread(self.transcripts.put, question, reply)
            return reply

    async def _asked(self, request: dict[str, Json]) -> Reply:
        from openai import OpenAIError

        try:
            response = await self.client.chat.completions.with_raw_response.create(**request)
            return reply_in(response.content, graded=self.graded)
        except (OpenAIError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            # The client reads an error's body as the protocol has it; one that is otherwise breaks it in many ways.
            return Reply(None, _said(error), lost=_lost(error))


def _lost(error: Exception) -> bool:
    """Whether the endpoint gave no answer of its own; what it refuses to answer (400, 422) it would refuse again."""
    from openai import APIConnectionError

    status = getattr(error, "status_code", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _NOT_NOW
    return isinstance(error, APIConnectionError) or (isinstance(status, int) and not refused)


def _said(error: Exception) -> str:
    """The client's error, or what of the connection is behind it."""
    status = getattr(error, "status_code", None)
    kind = f"{type(error).__name__}{f' {status}' if isinstance(status, int) else ''}"
    cause = error.__cause__
    return f"{kind}: {str(cause) or type(cause).__name__ if cause else error}"
