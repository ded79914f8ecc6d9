"""What is opened while something is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OPENED: list[str] = []
_WATCH = [False]


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _WATCH[0]:
        _OPENED.append(str(arguments[0]))


@contextmanager
def opened_below(folder: Path) -> Iterator[set[str]]:
    """Names of the folder's files that Python opens meanwhile."""
    if not hasattr(sys, "_latentbench_listens"):  # a hook can't be taken away again
        sys._latentbench_listens = True  # type: ignore[attr-defined]
        sys.addaudithook(_heard)
    names: set[str] = set()
    _OPENED.clear()
    _WATCH[0] = True
    try:
        yield names
    finally:
        _WATCH[0] = False
        below = (Path(path) for path in _OPENED if path.startswith(str(folder)))
        names |= {path.relative_to(folder).as_posix() for path in below if path.is_file()}
