"""What parts of specs say, asked once: sections that are written alike are one object, so the object tells what was asked before."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Once:
    """Answers by what was asked of which objects; errors of the kinds `kept` are answers too, and raised again."""

    def __init__(self, *kept: type[Exception]) -> None:
        self._kept = kept
        self._said: dict[Hashable, tuple[tuple[object, ...], Any, Exception | None]] = {}

    def __call__(self, kind: Hashable, objects: tuple[object, ...], ask: Callable[[], T]) -> T:
        """What was answered to `kind` of these very objects before, or what `ask` returns or raises."""
        key = (kind, *map(id, objects))
        if key not in self._said:
            said, raised = self._asked(ask)
            self._said[key] = (
                objects,
                said,
                raised,
            )  # the objects too, so that no other gets the number of one that is gone
        _, said, raised = self._said[key]
        if raised is not None:
            raise raised
        answer: T = said
        return answer

    def _asked(self, ask: Callable[[], Any]) -> tuple[Any, Exception | None]:
        try:
            return ask(), None
        except self._kept as error:
            return None, error
