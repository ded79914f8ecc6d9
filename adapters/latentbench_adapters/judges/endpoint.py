"""Asking an endpoint of the OpenAI chat-completions protocol: many requests under way at once, answers in the order of the questions.

Whatever a server does wrong is a reply with an error; the key is struck out of what it sends back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from openai import APIConnectionError, AsyncOpenAI, OpenAIError

from latentbench.core.protocols import Reply
from latentbench.core.spec_model import Json
from latentbench.core.text import one_line
from latentbench_adapters.judges.completion import reply_in
from latentbench_adapters.judges.http_client import BoundedClient
from latentbench_adapters.judges.requests import RateLimit, Transcripts, event_loop
from latentbench_adapters.judges.secret import Secret

if TYPE_CHECKING:
    from concurrent.futures import Future

_TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers that, told to debug, write down headers, and with them whatever a server sends back."""
_NO_KEY = "none"
"""What is sent where no key is asked for; the client insists on one, and would otherwise take OPENAI_API_KEY."""
_NOT_NOW = (401, 403, 404, 408, 409, 429)
"""Statuses below 500 that speak of the key, the model's name or the moment, not of the request."""
_LONGEST_ERROR = 300


@dataclass(frozen=True)
class Asking:
    """Where a judge is and how it is asked; the fields of `OpenAIJudge`, with its key."""

    base_url: str
    key: str | None = field(repr=False)
    timeout: float
    retries: int
    concurrency: int
    requests_per_minute: float | None
    probabilities: bool
    count_unanswered: bool


def answers(how: Asking, requests: Iterable[dict[str, Json]], cache: Path) -> Iterator[Reply]:
    """One reply per request, in order; `cache` is a folder for transcripts."""
    waiting: deque[Future[Reply]] = deque()
    with event_loop() as loop, _endpoint(how, loop, Transcripts(cache)) as endpoint:
        try:
            for request in requests:
                waiting.append(asyncio.run_coroutine_threadsafe(endpoint.reply(request), loop))
                if len(waiting) >= 2 * how.concurrency:  # more than are under way, so one slow answer idles none
                    yield _counted(how, waiting.popleft().result())
            while waiting:
                yield _counted(how, waiting.popleft().result())
        finally:
            for left in waiting:
                left.cancel()


def _counted(how: Asking, reply: Reply) -> Reply:
    return replace(reply, lost=False) if how.count_unanswered else reply


@contextmanager
def _endpoint(how: Asking, loop: asyncio.AbstractEventLoop, transcripts: Transcripts) -> Iterator[_Endpoint]:
    client, gate = _client(how), asyncio.Semaphore(how.concurrency)
    try:
        yield _Endpoint(client, how.base_url, transcripts, Secret(how.key), gate, how.probabilities)
    finally:
        asyncio.run_coroutine_threadsafe(client.close(), loop).result()


def _client(how: Asking) -> AsyncOpenAI:
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    rate = RateLimit(how.requests_per_minute)
    return AsyncOpenAI(
        api_key=how.key or _NO_KEY,
        base_url=how.base_url,
        timeout=how.timeout,
        max_retries=how.retries,
        http_client=BoundedClient(seconds=how.timeout, rate=rate, graded=how.probabilities),
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
        try:
            response = await self.client.chat.completions.with_raw_response.create(**request)
            return reply_in(response.content, graded=self.graded)
        except (OpenAIError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            # The client reads an error's body as the protocol has it; one that is otherwise breaks it in many ways.
            return Reply(None, _said(error), lost=_lost(error))


def _lost(error: Exception) -> bool:
    """Whether the endpoint gave no answer of its own; what it refuses to answer (400, 422) it would refuse again."""
    status = getattr(error, "status_code", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _NOT_NOW
    return isinstance(error, APIConnectionError) or (isinstance(status, int) and not refused)


def _said(error: Exception) -> str:
    """The client's error, or what of the connection is behind it."""
    status = getattr(error, "status_code", None)
    kind = f"{type(error).__name__}{f' {status}' if isinstance(status, int) else ''}"
    cause = error.__cause__
    return f"{kind}: {str(cause) or type(cause).__name__ if cause else error}"
