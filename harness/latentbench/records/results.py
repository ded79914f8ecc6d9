"""Records on disk: `results/records/<spec name>/<label>-seed<seed>-<cell>.json`, statistics beside them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from pydantic_core import from_json

from latentbench.core.errors import RefusedFile
from latentbench.core.hashing import digest, file_digest
from latentbench.records.integrity import damage, sealed
from latentbench.records.record import DocumentStatistics, Record, SpecOrigin
from latentbench.store.files import Arrays, bytes_of, write_arrays, write_json

RECORDS = "records"
_MAX_RECORD = 64 << 20


class CellName(Protocol):
    """What the place of a record is made of: the spec it came from, and which of its cells it is."""

    @property
    def origin(self) -> SpecOrigin:
        """The spec."""

    @property
    def label(self) -> str:
        """What distinguishes the cell within its spec."""

    @property
    def seed(self) -> int:
        """The cell's seed."""


def record_path(results: Path, cell: CellName, key: str) -> Path:
    """Where the record of a cell stands."""
    return results / RECORDS / cell.origin.name / f"{_slug(cell.label)}seed{cell.seed}-{key[:12]}.json"


def find_record(results: Path, cell: CellName, key: str) -> Record | None:
    """The record of a cell, or None. An unreadable one counts as absent, a damaged one has no numbers: either way the
    cell is computed again."""
    path = record_path(results, cell, key)
    try:
        record = read_record(path) if path.is_file() else None
    except RefusedFile:
        return None
    return record if record and record.cell == key else None


def records_of(results: Path, cell: CellName) -> Iterator[Record]:
    """The readable records of a cell under any key: what it was before its spec, texts or definitions changed."""
    folder, beginning = results / RECORDS / cell.origin.name, f"{_slug(cell.label)}seed{cell.seed}-"
    names = os.listdir(folder) if folder.is_dir() else ()
    for name in sorted(name for name in names if name.startswith(beginning) and name.endswith(".json")):
        try:
            yield read_record(folder / name)
        except RefusedFile:
            continue  # the leaderboard names unreadable records; here they only fail to explain a plan


def referred_keys(results: Path) -> set[str]:
    """Keys of all artifacts that some readable record refers to."""
    keys: set[str] = set()
    for path in sorted((results / RECORDS).rglob("*.json")):
        try:
            keys |= {artifact.key for artifact in read_record(path).artifacts}
        except RefusedFile:
            continue  # an unreadable record vouches for nothing
    return keys


def read_record(path: Path) -> Record:
    """A record that was checked: `Record.damaged` where it does not hold what was measured (`harness/latentbench/records/integrity.py`).

    Raises RefusedFile when it is not one, and for a link, which could lead to anything.
    """
    record, reason = checked(path, record_bytes(path))
    return record.damaged(reason) if reason else record


def record_bytes(path: Path) -> bytes:
    """The bytes of a file that may be a record. Raises RefusedFile, also for a link."""
    try:
        return bytes_of(path, _MAX_RECORD)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedFile("symbolic links are not followed") from None
        if error.errno == errno.EFBIG:
            raise RefusedFile(f"{path.name} is larger than a record can be") from None
        raise RefusedFile(f"{path.name} cannot be read: {error.strerror or error}") from None


def checked(path: Path, content: bytes) -> tuple[Record, str | None]:
    """The record that the bytes of the file at `path` say, and what is wrong with it. Raises RefusedFile when they say none."""
    try:
        record = Record.model_validate_json(content, strict=True)
        return record, damage(record, from_json(content), path)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RefusedFile(f"{path.name} is not a record: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:  # NaN, lone surrogates, endless digits
        raise RefusedFile(f"{path.name} is not a record: {error}") from None
    except OSError as error:
        raise RefusedFile(f"{path.name} cannot be read: {error.strerror or error}") from None


def write_record(results: Path, cell: CellName, record: Record, statistics: Arrays) -> Path:
    """Writes the statistics, then the record that vouches for them; the record is whole or absent."""
    path = record_path(results, cell, record.cell)
    if statistics:
        sidecar = path.with_suffix(".safetensors")
        write_arrays(sidecar, statistics)
        vouched = DocumentStatistics(file=sidecar.name, sha256=file_digest(sidecar))
        record = record.model_copy(update={"documents": vouched})
    write_json(path, sealed(record))
    return path


def _slug(label: str) -> str:
    """The label as part of a file name: long or unusual ones are shortened to a digest."""
    if not label:
        return ""
    # Two labels that look alike once they are plain must not share a file: all but the obvious get a digest.
    plain = re.sub(r"[^A-Za-z0-9.=_-]+", "_", label)
    return (
        f"{plain}-"
        if plain == label.replace(",", "_") and len(plain) <= 60
        else f"{plain[:40]}~{digest('label', label)[:8]}-"
    )
