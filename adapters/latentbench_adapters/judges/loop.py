"""An event loop beside code that has none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own, for `asyncio.run_coroutine_threadsafe`; what is unfinished at the end is cancelled."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    thread = Thread(target=_run, args=(runner,), name="judge", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _run(runner: asyncio.Runner) -> None:
    with runner:
        runner.get_loop().run_forever()
