"""A rate limit that requests share."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Lets requests start no faster than `per_minute`, evenly spaced; without a limit it never waits."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when the next request may start."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._spacing
        if start > now:
            await asyncio.sleep(start - now)
