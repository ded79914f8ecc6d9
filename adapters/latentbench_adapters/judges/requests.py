"""Asking a judge many questions: transcripts of what was paid for, a rate limit that requests share, and an event loop for them.

Answers are kept by the sha256 of the whole request, so that none is asked twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from latentbench.core.errors import StoreError
from latentbench.core.hashing import digest
from latentbench.core.protocols import Reply
from latentbench.core.spec_model import Json
from latentbench.store.files import read_json, write_json


class Transcripts:
    """A folder of JSON files, one per request; only successful replies are kept.

    They are kept in the clear and for good, which is safe because requests hold neither the key nor a header.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "judges"

    def get(self, request: Json) -> Reply | None:
        """The reply to exactly this request, or None; a damaged file counts as none."""
        try:
            kept = read_json(self._path(request))
            return _reply(kept["reply"]) if kept["request"] == request else None
        except (StoreError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def put(self, request: Json, reply: Reply) -> None:
        """Keeps a successful reply."""
        counts = {"prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens}
        graded = {} if reply.ones is None else {"ones": {str(place): one for place, one in reply.ones.items()}}
        write_json(self._path(request), {"request": request, "reply": {"text": reply.text, **counts, **graded}})

    def _path(self, request: Json) -> Path:
        key = digest("judge request", request)
        return self._folder / key[:2] / f"{key}.json"


def _reply(kept: Json) -> Reply:
    """A reply as it was written. Raises ValueError or what Python raises for one that is damaged."""
    read, written = kept["prompt_tokens"], kept["reply_tokens"]
    ones = {int(place): one for place, one in kept["ones"].items()} if "ones" in kept else None
    if not isinstance(kept["text"], str) or not (isinstance(read, int) and isinstance(written, int)):
        raise ValueError("no reply")
    if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in (ones or {}).values()):
        raise ValueError("no probabilities")
    return Reply(kept["text"], None, read, written, ones=ones)


class RateLimit:
    """Lets requests start no faster than `per_minute`, evenly spaced; without a limit it never waits."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 60 / per_minute if per_minute else 0.0
        """Seconds between two requests."""
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when the next request may start."""
        now = time.monotonic()
        # The turn is taken before the sleep: no two requests can get the same one, since nothing is awaited in between.
        start = max(now, self._next)
        self._next = start + self._spacing
        if start > now:
            await asyncio.sleep(start - now)


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own, for `asyncio.run_coroutine_threadsafe`; what is unfinished at the end is cancelled."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    thread = Thread(target=_run_loop, args=(runner,), name="judge", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _run_loop(runner: asyncio.Runner) -> None:
    with runner:
        runner.get_loop().run_forever()
