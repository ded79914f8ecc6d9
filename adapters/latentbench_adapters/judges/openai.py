"""`adapter: openai`: a chat model behind any endpoint that speaks the OpenAI chat-completions protocol.

The key comes from an environment variable and is given to the client alone: it is in no spec, identity, transcript, error
or log, and is struck out of whatever the server sends back (`secret.py`). Who asks is `endpoint.py`; an answer is bounded in
time and size (`http_client.py`) and checked (`completion.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from latentbench.core.errors import NotAvailable
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from latentbench.core.spec_model import Json
from latentbench.core.text import one_line

_ALTERNATIVES = 5
"""Tokens whose probability is asked for at every place; the protocol allows 20, some servers only 5."""


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
        from latentbench_adapters.judges.endpoint import Asking, answers  # asyncio, which reading a spec does without

        limits = (self.timeout, self.retries, self.concurrency, self.requests_per_minute)
        how = Asking(self.base_url, self._key(), *limits, self.probabilities, self.unanswered == "count")
        yield from answers(how, map(self._request, requests), cache)

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
