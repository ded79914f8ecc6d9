"""Reading many records: what was checked once is not checked again while its bytes are what they were.

A record is checked whole when it is read (harness/latentbench/records/integrity.py): validated, its digest computed, every
number compared with the sums of its statistics. That what it says holds follows from the bytes of two files and from the
estimators that are installed, so it is remembered by the digest of these bytes. The bytes themselves are read and hashed
every time; sizes and times of files vouch for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from latentbench.core.errors import RefusedFile
from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json
from latentbench.metrics.recorded import estimators
from latentbench.records.integrity import vouched
from latentbench.records.record import Record
from latentbench.records.results import CellName, checked, record_bytes, record_path
from latentbench.records.slim import LAYOUT, Parts, slim
from latentbench.store.derived import Derived

CHECK = 1
"""Raised when records are checked in another way, so that what is remembered is not asked for any more."""
KNOWN, _PARTS = f"records/{CHECK}/{LAYOUT}", f"record-parts/{LAYOUT}"
_TOGETHER = 256
"""Records whose bytes are held together."""
_THREADS = 4
T = TypeVar("T")


class RecordReader:
    """Reads records, and remembers in `derived`, if there is one, that they were sound."""

    def __init__(self, derived: Derived | None = None) -> None:
        self._derived, self._parts = derived, Parts()
        self._written: set[str] = set()
        self._estimators: dict[str, str] = {}
        """By the digest of the resolved experiment, which many records share."""

    def find(self, results: Path, cells: Iterable[tuple[CellName, str]]) -> list[Record | None]:
        """The record of each cell with a key, as `find_record` gives it."""
        places = [(record_path(results, cell, key), key) for cell, key in cells]
        there = dict.fromkeys(path for path, _ in places if path.is_file())
        found = dict(self.read(there)) if there else {}
        records = ((found.get(path), key) for path, key in places)
        return [one if isinstance(one, Record) and one.cell == key else None for one, key in records]

    def read(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Record | RefusedFile]]:
        """Each record as `read_record` gives it, or why there is none."""
        remaining = iter(paths)
        # Reading and hashing wait for disks and hold no lock.
        with ThreadPoolExecutor(_THREADS) as threads:
            while batch := list(islice(remaining, _TOGETHER)):
                yield from zip(batch, self._batch(batch, threads), strict=True)

    def _batch(self, paths: Sequence[Path], threads: Executor) -> list[Record | RefusedFile]:
        contents, digests = zip(*_apart(_bytes_and_digest, threads, paths), strict=True)
        known, new, parts = self._known(digests), dict[str, Json](), dict[str, str]()
        remembered = [self._remembered(known.get(key)) for key in digests]
        held = _apart(_vouched, threads, paths, remembered)

        def read(path: Path, content: bytes | RefusedFile, key: str, record: Record | None) -> Record | RefusedFile:
            if isinstance(content, RefusedFile):
                return content
            return record or self._checked(path, content, key, new, parts)

        found = [read(*each) for each in zip(paths, contents, digests, held, strict=True)]
        self._remember(new, parts)
        return found

    def _known(self, digests: Sequence[str]) -> dict[str, Json]:
        """What is remembered of some records, where all its parts are there."""
        if self._derived is None:
            return {}
        known = self._derived.get_many(KNOWN, {key for key in digests if key})
        wanted = set().union(*(self._parts.missing(own["slim"]) for own in known.values()))
        self._parts.add(there := self._derived.get_many(_PARTS, wanted))
        self._written |= there.keys()
        return {key: own for key, own in known.items() if not self._parts.missing(own["slim"])}

    def _remembered(self, own: Json | None) -> Record | None:
        """A record that was sound with its statistics, if it was checked with the estimators of this installation."""
        if own is None:
            return None
        record, resolved = self._parts.whole(own["slim"]), own["slim"]["parts"]["resolved"]
        if resolved not in self._estimators:
            self._estimators[resolved] = _estimators(record.metrics_section)
        return record if own["estimators"] == self._estimators[resolved] else None

    def _checked(
        self, path: Path, content: bytes, key: str, new: dict[str, Json], parts: dict[str, str]
    ) -> Record | RefusedFile:
        try:
            record, reason = checked(path, content)
        except RefusedFile as error:
            return error
        if reason:
            return record.damaged(reason)
        own, texts = slim(record)
        self._parts.add(texts)
        parts |= texts
        new[key] = {"slim": own, "estimators": _estimators(record.metrics_section)}
        return self._parts.whole(own)

    def _remember(self, new: dict[str, Json], parts: dict[str, str]) -> None:
        if self._derived is not None and new:
            # Parts first: a record whose parts are not there is checked again.
            self._derived.put_many(_PARTS, {key: text for key, text in parts.items() if key not in self._written})
            self._derived.put_many(KNOWN, new)
            self._written |= parts.keys()


def _apart(call: Callable[..., T], threads: Executor, *arguments: Sequence[Any]) -> list[T]:
    """The call of each, in pieces by the threads: handing over a file at a time costs as much as reading it."""
    size = max(1, -(-len(arguments[0]) // _THREADS))
    pieces = ([part[at : at + size] for part in arguments] for at in range(0, len(arguments[0]), size))
    return [one for done in threads.map(lambda parts: list(map(call, *parts)), pieces) for one in done]


def _bytes_and_digest(path: Path) -> tuple[bytes | RefusedFile, str]:
    try:
        content = record_bytes(path)
    except RefusedFile as error:
        return error, ""
    return content, hashlib.sha256(content).hexdigest()


def _vouched(path: Path, record: Record | None) -> Record | None:
    """The record, if the statistics beside it are those it vouches for."""
    return record if record and vouched(path.parent, record.documents) else None


@lru_cache(maxsize=1024)
def _estimators(metrics: str) -> str:
    """A digest of the estimators that numbers are compared with: what is installed here decides what is checked."""
    known = [[*number, one.inputs, one.units, one.paired] for number, one in sorted(estimators(metrics).items())]
    return digest("estimators", known)[:16]
