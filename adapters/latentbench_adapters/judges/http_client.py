"""One HTTP request and its whole answer, bounded in time and in bytes.

The clients' own timeout is one per read, so that an answer that drips may take for ever, and they read and unpack
whatever comes. Here one clock covers everything from the connection to the last byte, and an answer is counted as it is
read and as it is unpacked.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from typing import Any

from openai import DefaultAsyncHttpxClient

from latentbench_adapters.judges.completion import reply_in
from latentbench_adapters.judges.requests import RateLimit

LONGEST_ANSWER = 8 << 20
"""Bytes, packed and unpacked: over 8,000 tokens, each with five alternatives and their probabilities."""
_LIMIT = f"{LONGEST_ANSWER >> 20} MiB"
_GZIP = zlib.MAX_WBITS | 16
_OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")

# httpx, or httpx2 with newer versions of openai.
_http: Any = sys.modules[DefaultAsyncHttpxClient.__mro__[1].__module__]


class BoundedClient(DefaultAsyncHttpxClient):
    """An HTTP client for `AsyncOpenAI`, which sees every attempt, retries included.

    What goes wrong is raised as the client's own errors of transport: those are retried.
    """

    def __init__(self, *, seconds: float, rate: RateLimit, graded: bool) -> None:
        # A redirect could carry the request, and the key, somewhere else.
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "gzip"})
        self._seconds, self._rate, self._graded = seconds, rate, graded

    async def send(self, request: Any, **options: Any) -> Any:
        """The answer, read to its end."""
        await self._rate.wait()  # in here, so that retries count too
        try:
            async with asyncio.timeout(self._seconds):
                return await self._whole(request, {**options, "stream": True})
        except TimeoutError:
            raise _http.ReadTimeout(f"no whole answer within {self._seconds:g} s", request=request) from None

    async def _whole(self, request: Any, options: dict[str, Any]) -> Any:
        response = await super().send(request, **options)
        try:
            body = _unpacked(await _read(response), response.headers.get("content-encoding", ""))
            if response.is_success:
                reply_in(body, graded=self._graded)  # checked here, where the client still retries
        except ValueError as error:
            if response.is_success:
                raise _http.RemoteProtocolError(str(error), request=request) from None
            body = b""  # the status says enough
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.items() if name not in _OF_THE_TRANSFER]
        return _http.Response(response.status_code, headers=headers, content=body, request=request)


async def _read(response: Any) -> bytes:
    """The bytes as sent. Raises ValueError as soon as there are too many."""
    got = bytearray()
    async for chunk in response.aiter_raw():
        got += chunk
        if len(got) > LONGEST_ANSWER:
            raise ValueError(f"the answer is longer than {_LIMIT}")
    return bytes(got)


def _unpacked(sent: bytes, encoding: str) -> bytes:
    """Raises ValueError for more than `LONGEST_ANSWER` bytes, of which no more are unpacked, and for broken packing."""
    if encoding in ("", "identity"):
        return sent
    if encoding != "gzip":
        raise ValueError(f"the answer is packed as {encoding[:40]!r}, which was not asked for")
    unpacking = zlib.decompressobj(_GZIP)
    try:
        body = unpacking.decompress(sent, LONGEST_ANSWER + 1)
    except zlib.error as error:
        raise ValueError(f"the answer cannot be unpacked: {error}") from None
    if len(body) > LONGEST_ANSWER:
        raise ValueError(f"the answer is longer than {_LIMIT} when unpacked")
    if not unpacking.eof:
        raise ValueError("the answer cannot be unpacked: it ends too early")
    return body
