"""What follows from files that were read before, kept by their content so that nothing is worked out twice.

One SQLite file in the store holds JSON by namespace and digest. It is a cache: whoever asks can do without an answer, so a
file that is damaged, locked, of another make or in a folder that cannot be written counts as empty, and nothing raises. It
stands in the store, which is of this machine, and not beside the results, with which it would travel and vouch for numbers
that were altered on the way. Whatever decides an answer is in its digest or in the name of its namespace; so nothing in it
is ever wrong, only no longer asked for, and what was put in first goes first once the file has reached its size.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import from_json

from latentbench.core.spec_model import Json

if TYPE_CHECKING:
    from sqlite3 import Connection

DERIVED = "derived.sqlite"
LIMIT = 1 << 30
"""Bytes of the file beyond which the oldest half of what it holds is dropped."""
_WAIT = 2.0
"""Seconds to wait for another process that writes; after that, computing is quicker than waiting."""
_TOGETHER = 500
"""Keys of one question: SQLite allows 999 in old versions."""
_TABLE = """
CREATE TABLE IF NOT EXISTS derived (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, sum INTEGER NOT NULL, value TEXT NOT NULL,
    UNIQUE (namespace, key)
)"""


class Derived:
    """JSON by digest within a namespace, shared by all processes that use the store."""

    def __init__(self, store: Path) -> None:
        self.path = store / DERIVED

    def get_many(self, namespace: str, keys: Collection[str]) -> dict[str, Json]:
        """What is known of the keys; those of which nothing is known are left out."""
        found: dict[str, Json] = {}
        listed = list(keys) if self.path.is_file() else []

        def ask(database: Connection) -> None:
            for start in range(0, len(listed), _TOGETHER):
                part = listed[start : start + _TOGETHER]
                wanted = f"namespace = ? AND key IN ({','.join('?' * len(part))})"
                lines = database.execute(f"SELECT key, sum, value FROM derived WHERE {wanted}", (namespace, *part))
                found.update((key, from_json(text)) for key, sum, text in lines if sum == _sum(namespace, key, text))

        if listed:
            self._attempt(ask)
        return found

    def count(self, namespace: str) -> int:
        """How much is known in a namespace."""
        found = [0]

        def ask(database: Connection) -> None:
            (line,) = database.execute("SELECT COUNT(*) FROM derived WHERE namespace = ?", (namespace,))
            found.append(int(line[0]))

        if self.path.is_file():
            self._attempt(ask)
        return found[-1]

    def put_many(self, namespace: str, values: Mapping[str, Json]) -> None:
        """Keeps values for later; one that cannot be written is worked out again."""
        texts = {key: json.dumps(value, separators=(",", ":"), allow_nan=False) for key, value in values.items()}
        lines = [(namespace, key, _sum(namespace, key, text), text) for key, text in texts.items()]

        def tell(database: Connection) -> None:
            # Losing the last lines when the power fails costs nothing here; waiting for the disk would.
            database.execute("PRAGMA synchronous = OFF")
            database.execute(_TABLE)
            _make_room(database)
            database.executemany(
                "INSERT OR REPLACE INTO derived (namespace, key, sum, value) VALUES (?, ?, ?, ?)", lines
            )
            database.commit()

        if lines:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._attempt(tell)

    def _attempt(self, work: Callable[[Connection], None]) -> None:
        """Does what can be done with the database; what cannot is left undone, and a damaged file is removed."""
        try:
            import sqlite3  # reading specs needs none of it
        except ImportError:  # some builds of Python have none
            return
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as database:
                work(database)
        except (sqlite3.OperationalError, OSError):
            return  # locked, full, not writable, or of another make
        except (sqlite3.DatabaseError, ValueError, TypeError):
            self.remove()

    def remove(self) -> None:
        """Deletes everything; another process that has it open goes on with what it had."""
        for path in (self.path, *self.path.parent.glob(f"{DERIVED}-*")):
            with suppress(OSError):
                path.unlink()


def _make_room(database: Connection) -> None:
    ((pages,),) = database.execute("PRAGMA page_count")
    ((size,),) = database.execute("PRAGMA page_size")
    ((unused,),) = database.execute("PRAGMA freelist_count")
    if (pages - unused) * size > LIMIT:
        database.execute("DELETE FROM derived WHERE number <= (SELECT (MIN(number) + MAX(number)) / 2 FROM derived)")


def _sum(namespace: str, key: str, value: str) -> int:
    """A checksum of the line, which a database does not keep of its own."""
    return zlib.crc32(f"{namespace}\n{key}\n{value}".encode())
