"""How far a run is, kept beside its results for whoever watches from outside (`status --watch`).

Every run has a small file of its own, `results/logs/progress-<token>.json`, which its first process writes again every
other second and removes at its end. A run that died leaves its file behind: it is known by its process, where that was on
this machine, and otherwise by a count that has stopped.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latentbench.core.progress import WorkProgress
from latentbench.distributed.worker_process import Event, EventHandler
from latentbench.store.leases import Owner

_SECONDS_BETWEEN = 2.0
"""Between two looks at whether there is something to write."""
_BEAT_SECONDS = 20.0
"""After which the file is written again although nothing is new: a step may take long."""
_EXPIRY_SECONDS = 90.0
"""Of watching a count that stands still, after which its run counts as dead."""
_LARGEST = 1 << 20
"""Bytes of a file that is read: more than any run writes."""
_NAME = "progress-{}.json"


class ProgressBoard:
    """A run's file. A context: it writes on a thread of its own, so that no slow disk holds up the run.

    That a disk refuses costs nothing but what could have been seen.
    """

    def __init__(self, results: Path) -> None:
        self._owner = Owner.here()
        self._path = results / "logs" / _NAME.format(self._owner.token)
        self._work: dict[str, WorkProgress] = {}
        self._lock, self._ended, self._new = threading.Lock(), threading.Event(), False
        self._count, self._written = 0, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_BEAT_SECONDS)

    def listening(self, report: EventHandler) -> EventHandler:
        """`report`, overheard."""

        def heard(event: Event) -> None:
            if event.progress:
                self._take(event.progress)
            report(event)

        return heard

    def _take(self, message: WorkProgress) -> None:
        with self._lock:
            self._new = True
            if message.end:
                self._work.pop(message.work, None)
            else:
                self._work[message.work] = message

    def _run(self) -> None:
        # Nothing is written in the first moments: what is done at once needs no file.
        with suppress(OSError):
            _sweep(self._path.parent)
            while not self._ended.wait(_SECONDS_BETWEEN):
                if self._new or time.monotonic() - self._written > _BEAT_SECONDS:
                    with suppress(OSError):
                        self._write()
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        with self._lock:
            self._new, work = False, [asdict(message) for message in self._work.values()]
        self._count, self._written = self._count + 1, time.monotonic()
        content = {"owner": asdict(self._owner), "count": self._count, "work": work}
        # Not synced to the disk: after a crash nobody needs it. A draft's name begins with a dot, so `gc` finds what is left.
        draft = self._path.with_name(f".{self._path.name}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content), "utf-8")
        os.replace(draft, self._path)


def _sweep(folder: Path) -> None:
    """Removes what runs of this machine that are no more have left."""
    for path in folder.glob(_NAME.format("*")):
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            if Owner(**_content(path)["owner"]).gone:
                path.unlink()


def _content(path: Path) -> Any:
    """Raises OSError or ValueError for what no run wrote."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} is not what a run wrote")
    return json.loads(path.read_bytes())


@dataclass
class _Watched:
    """The count of a file, and since when it stands."""

    count: Any
    since: float


@dataclass
class BoardReader:
    """Reads the files of all runs on these results, again and again."""

    results: Path
    clock: Callable[[], float] = time.monotonic
    _watched: dict[str, _Watched] = field(default_factory=dict)

    def look(self) -> list[WorkProgress]:
        """What the living are at; a file that cannot be read says nothing."""
        found = []
        for path in sorted((self.results / "logs").glob(_NAME.format("*"))):
            with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                found += self._read(path)
        return found

    def _read(self, path: Path) -> list[WorkProgress]:
        content = _content(path)
        if Owner(**content["owner"]).gone or self._stands_still(path.name, content["count"]):
            return []
        return [message for data in content["work"] if not (message := WorkProgress.of(data)).end]

    def _stands_still(self, name: str, count: Any) -> bool:
        watched = self._watched.get(name)
        if watched is None or watched.count != count:
            self._watched[name] = _Watched(count, self.clock())
            return False
        return self.clock() - watched.since > _EXPIRY_SECONDS
