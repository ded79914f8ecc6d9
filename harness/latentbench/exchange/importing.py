"""Result files of other tools become records: every file is read before anything is written, and all are written or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.hashing import digest, file_digest
from latentbench.core.spec_model import Json
from latentbench.exchange import lm_eval, sae_lens, saebench
from latentbench.exchange.foreign import ForeignResult, parsed, word
from latentbench.records.integrity import sealed
from latentbench.records.record import Comparability, Import, Record, SpecOrigin
from latentbench.records.results import RECORDS, read_record
from latentbench.store.files import write_json

FOLDER = "imported"
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Imported:
    """A record made of a foreign result."""

    record: Record
    path: Path
    new: bool
    """False where the same result of the same file was imported before and is whole."""


def import_files(results: Path, files: Sequence[Path]) -> list[Imported]:
    """The records of all results in `files`, written below `results/records/imported/`.

    Raises RefusedFile for a file that is none of the known kinds or malformed; then nothing is written.
    """
    records = {record.cell: record for file in files for record in records_of(file)}
    made = [Imported(r, (place := _place(results, r)), not _whole(place)) for r in records.values()]
    written: list[Path] = []
    try:
        for item in (item for item in made if item.new):
            write_json(item.path, sealed(item.record))
            written.append(item.path)
    except BaseException:  # an interrupt too: all files or none
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
    return made


def records_of(file: Path) -> list[Record]:
    """The records a file would give. Raises RefusedFile."""
    if not file.is_file():
        raise InvalidInput(f"there is no file {file}")
    if file.stat().st_size > _MAX_BYTES:
        raise RefusedFile(f"{file.name} is larger than 256 MiB: not a result file")
    found = read_foreign(file.read_bytes(), file.name)
    sha256, written = file_digest(file), datetime.fromtimestamp(file.stat().st_mtime, UTC)
    return [_record(foreign, file.name, sha256, entry, written) for entry, foreign in enumerate(found)]


def read_foreign(content: bytes, name: str) -> list[ForeignResult]:
    """The results in a file of any known tool. Raises RefusedFile."""
    if name.lower().endswith(".csv"):
        return sae_lens.read_csv(content, name)
    data = parsed(content, name)
    if saebench.recognises(data):
        return saebench.read(data, name)
    if sae_lens.recognises(data):
        return sae_lens.read(data, name)
    if lm_eval.recognises(data):
        return [lm_eval.read(data, name)]
    raise RefusedFile(
        f"{name} is no result file of SAEBench, sae-lens or lm-eval (schemas: docs/tools.md): it holds {_outline(data)}"
    )


def _outline(data: Json) -> str:
    """What a file holds, so that one sees which other file it is."""
    if isinstance(data, list):
        return f"a list of {len(data):,}"
    if isinstance(data, dict):
        named = ", ".join(repr(key[:40]) for key in list(data)[:4])
        return f"an object with {named}{', …' if len(data) > 4 else ''}" if data else "an empty object"
    return f"no object but {str(data)[:40]!r}"


def _record(foreign: ForeignResult, file: str, sha256: str, entry: int, written: datetime) -> Record:
    name = "/".join([FOLDER, foreign.tool, *(word(part) for part in foreign.name.split("/"))])
    facts = {domain: dict(agreed) for domain, agreed in foreign.facts.items()}
    try:
        return Record(
            cell=digest("imported", {"sha256": sha256, "entry": entry}),
            spec=SpecOrigin(name=name, path=file, digest=sha256),
            label=foreign.label,
            resolved=dict(foreign.resolved),
            seed=foreign.seed,
            status="ok",
            comparability={d: Comparability(key=digest("comparability", f), fields=f) for d, f in facts.items()},
            metrics=foreign.metrics,
            warnings=foreign.warnings,
            created=foreign.created or written.isoformat(timespec="seconds"),
            imported=Import(tool=foreign.tool, version=foreign.version, file=file, sha256=sha256, entry=entry),
        )
    except (ValidationError, ValueError) as error:
        raise RefusedFile(f"{file}: {str(error).splitlines()[0]}") from None


def _whole(place: Path) -> bool:
    try:
        return read_record(place).status == "ok"
    except RefusedFile:
        return False


def _place(results: Path, record: Record) -> Path:
    label = f"{word(record.label)}-" if record.label else ""
    return results / RECORDS / record.spec.name / f"{label}seed{record.seed}-{record.cell[:12]}.json"
