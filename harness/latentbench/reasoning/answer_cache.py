"""A model's answers to the questions of a task, and the file in which they are kept.

Answers are named by everything that determines them. lm-eval's own cache names an
answer by the request alone, so that a steered model gets the unsteered model's answers. Here the model, the intervention
(vectors, scale, scope), the request, the settings and the sample are all in the key.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from latentbench.core.errors import StoreError

_WAIT_SECONDS = 60
_AT_ONCE = 500
"""Keys of one query; SQLite takes no more than 999 parameters in older versions."""


@dataclass(frozen=True)
class TaskAnswer:
    """One generated answer."""

    text: str
    """What was written up to, and without, the end token or stop string."""
    tokens: int
    """Generated tokens, the end token not counted."""
    truncated: bool
    """Whether the limit on new tokens ended it."""


class AnswerCache:
    """A file of answers by key: SQLite with JSON text, so several processes may use it and reading it runs no code."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises StoreError where it cannot be used."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def known(self, keys: Sequence[str]) -> dict[str, TaskAnswer]:
        """The answers there are among `keys`."""
        found: dict[str, TaskAnswer] = {}
        with self._connected() as database:
            for first in range(0, len(keys), _AT_ONCE):
                part = keys[first : first + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", part)
                found |= {key: TaskAnswer(**json.loads(answer)) for key, answer in rows}
        return found

    def add(self, answers: Mapping[str, TaskAnswer]) -> None:
        """Keeps answers; what is there already stays, because the same key means the same answer."""
        rows = [(key, json.dumps(asdict(answer), ensure_ascii=False)) for key, answer in answers.items()]
        with self._connected() as database:
            database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # Opened for each use, because SQLite's connections must be carried neither across a fork nor into another thread.
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database, database:
                yield database
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise StoreError(
                f"cannot use the answers in {self._path} ({error}); delete the file to start afresh"
            ) from error
