"""What follows from the bytes of files, worked out again only when what the file system says of them differs.

A process never reads the same large file twice. While something is planned, what was found out is kept for the next process as
well: model files have gigabytes, and every plan asks for their digests. Kept is only what follows from at least 16 MiB; less is
read as quickly as it is looked up. As version control does, this goes by size, inode and the times of the content and of the
entry, which nobody sets; files that changed a moment ago are read anyway, for the next change could have the same time. What
makes something of a file's content does not ask here: a worker, another process, reads and hashes the file itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from latentbench.core.hashing import digest, file_digest
from latentbench.core.spec_model import Json

_LARGE = 1 << 24
_TICK = 2_000_000_000
"""Nanoseconds after a change in which another one may have the same time, on coarse file systems."""
_MOST = 4096
"""What a process remembers."""
_SPACE = "known-files/1"


class Keeper(Protocol):
    """Where JSON is kept under a namespace and a digest; `Derived` of the store does."""

    def get_many(self, namespace: str, keys: Collection[str]) -> dict[str, Json]:
        """What is known of the keys."""

    def put_many(self, namespace: str, values: Mapping[str, Json]) -> None:
        """Keeps values for later."""


_KEEPER: ContextVar[Keeper | None] = ContextVar("keeper", default=None)
_MADE: dict[str, Json] = {}


@contextmanager
def kept_in(keeper: Keeper) -> Iterator[None]:
    """While open, what follows from large files is looked up and kept there."""
    token = _KEEPER.set(keeper)
    try:
        yield
    finally:
        _KEEPER.reset(token)


def known(what: str, paths: Collection[Path], make: Callable[[], Json]) -> Json:
    """JSON that follows from the bytes of files alone, by `make` where nobody knows it. `what` names it with its version.

    Raises OSError for files that cannot be looked at, and what `make` raises.
    """
    states = [path.stat() for path in paths]
    key = digest(what, [[str(path), *_state(state)] for path, state in zip(paths, states, strict=True)])
    if key not in _MADE:
        if len(_MADE) >= _MOST:
            _MADE.clear()
        keeper = _KEEPER.get() if sum(state.st_size for state in states) >= _LARGE else None
        _MADE[key] = make() if keeper is None else _kept(keeper, key, max(map(_changed, states)), make)
    return _MADE[key]


def known_digest(*paths: Path) -> str:
    """`file_digest`, computed anew only when what the file system says of a file differs."""
    found: str = known("sha256", paths, lambda: file_digest(*paths))
    return found


def _kept(keeper: Keeper, key: str, changed: int, make: Callable[[], Json]) -> Json:
    there = keeper.get_many(_SPACE, [key])
    if key in there:
        return there[key]
    # Looked at before it is read: whoever changes it meanwhile gives it another time.
    settled = time.time_ns() - changed > _TICK
    found = make()
    if settled:
        keeper.put_many(_SPACE, {key: found})
    return found


def _state(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _changed(state: os.stat_result) -> int:
    return max(state.st_mtime_ns, state.st_ctime_ns)
