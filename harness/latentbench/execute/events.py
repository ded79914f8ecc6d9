"""What a worker tells while it works, one JSON object per line on its standard output, and how it can be lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from latentbench.record import Status

Kind = Literal["progress", "done", "note"]


@dataclass(frozen=True)
class Event:
    """One report of a worker."""

    kind: Kind
    text: str
    """What is going on, or which cell is done."""
    done: int = 0
    total: int = 0
    status: str = ""
    """Of a finished cell: ok, failed, timeout or skipped."""

    def line(self) -> str:
        """The event as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def parse(line: str) -> Event | None:
        """The event of a line, or None for anything else that reached the worker's output."""
        try:
            data = json.loads(line)
            return Event(**data) if isinstance(data, dict) else None
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Loss:
    """How cells were lost that have no record although their worker has ended."""

    status: Status
    type: str
    message: str


Report = Callable[[Event], None]
