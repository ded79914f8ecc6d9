"""Records and their statistics as they lie on disk: all that can be read, and every file that cannot, with the reason.

Which of several records is the current one of its spec, label and seed is decided here too, for tables and exports alike.

What training cost on the machine that did it joins a record's numbers here: shown next to the cost by formula, never ranked.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.hashing import canonical
from latentbench.core.spec_model import Json
from latentbench.core.text import visible
from latentbench.metrics.base import Display
from latentbench.metrics.value import MetricValue
from latentbench.records.integrity import read_statistics
from latentbench.records.numbers import Numbers, number_column
from latentbench.records.reading import RecordReader
from latentbench.records.record import Record
from latentbench.records.results import RECORDS, read_record
from latentbench.sae.options.training import TrainingOptions
from latentbench.statistics.arrays import Statistics
from latentbench.store.derived import Derived

SPEED, MEMORY = "training.tokens_per_second", "training.memory"
ON_MACHINE = {SPEED: Display("Training speed"), MEMORY: Display("Training memory")}
"""Numbers that stand in no record's metrics, since another machine or load gives others; no metric declares them."""


def on_machine(record: Record) -> Numbers | None:
    """Tokens per second of the SAE's own steps, and the memory of its training in MiB, where they were recorded."""
    cost, found = record.cost, dict[tuple[str, str], float]()
    if cost.tokens_per_second is not None:
        found[SPEED, "tokens/s"] = cost.tokens_per_second
    if cost.training_memory_bytes is not None:
        found[MEMORY, "MiB"] = cost.training_memory_bytes / 2**20
    if not found:
        return None
    titles, counted = _headed(tuple(found))
    none = number_column([None] * len(found))
    return Numbers(titles, number_column(list(found.values())), [none, none], counted, {})


@cache
def _headed(named: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """What such numbers say beside their values, which thousands of records have alike."""
    values = [MetricValue(id=name, version=1, value=0.0, unit=unit, higher_is_better=None) for name, unit in named]
    numbers = Numbers.of(values)
    return numbers.headings.text, numbers.pattern.text


class Asked:
    """What tables ask of a resolved experiment, worked out once for all records of it."""

    def __init__(self, resolved: Mapping[str, Json]) -> None:
        self.resolved = resolved

    @cached_property
    def metrics(self) -> str:
        """The `metrics` as canonical JSON."""
        return canonical(self.resolved.get("metrics") or [])

    @cached_property
    def identity(self) -> str:
        """What was trained, by which records of one row over several seeds are told from those of an older version."""
        kept = {name: value for name, value in self.resolved.items() if name not in NOT_IDENTITY}
        training = kept.get("training") or {}
        return canonical(kept | {"training": {k: v for k, v in training.items() if k not in TrainingOptions.handling}})

    @cached_property
    def setting(self) -> str:
        """What was to be measured, for cells that never came to it."""
        evaluated = (self.resolved.get("dataset") or {}).get("eval")
        return canonical([self.resolved.get("model"), self.resolved.get("layer"), evaluated])


@dataclass(frozen=True)
class LoadedRecord:
    """A record, where it lies, and on demand its per-document statistics."""

    record: Record
    path: str
    """Relative to the results folder, with forward slashes."""
    results: Path

    @cached_property
    def asked(self) -> Asked:
        """Its experiment; records that share one share this too (`load`)."""
        return Asked(self.record.resolved)

    @property
    def metrics_section(self) -> str:
        """The `metrics` of its resolved experiment as canonical JSON."""
        return self.asked.metrics

    @cached_property
    def numbers(self) -> Numbers:
        """The record's numbers."""
        return Numbers.of(self.record.metrics)

    @cached_property
    def on_machine(self) -> Numbers | None:
        """What its training cost on the machine that did it, where that was recorded."""
        return on_machine(self.record)

    @cached_property
    def created(self) -> datetime:
        """When the record was written; UTC where it does not say."""
        moment = datetime.fromisoformat(self.record.created)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def command(self) -> str:
        """What makes the record again, and no others of its spec."""
        record = self.record
        if record.imported:
            return f"latentbench import {shlex.quote(visible(record.imported.file))}"
        chosen = f" --filter {shlex.quote(visible(f'[{record.label}]'))}" if record.label else ""
        return f"latentbench run {shlex.quote(visible(record.spec.path))}{chosen}"

    def statistics(self) -> Statistics:
        """All statistics beside the record. Raises RefusedFile when they are absent, damaged or not ours."""
        documents = self.record.documents
        if documents is None:
            raise RefusedFile(f"{self.path} has no per-document statistics")
        try:
            return read_statistics((self.results / self.path).parent, documents)
        except RefusedFile as error:
            raise RefusedFile(f"{self.path}: {error}") from None


@dataclass(frozen=True)
class LoadedResults:
    """All records of a results folder."""

    root: Path
    loaded: tuple[LoadedRecord, ...]
    refused: tuple[RefusedFile, ...]
    """One per file that lies among the records and is none."""


def load(results: Path, derived: Derived | None = None, files: Iterable[Path] | None = None) -> LoadedResults:
    """Every record below `results/records`, or those of some files, in the order of their paths.

    `derived` remembers which were checked before. Raises InvalidInput without such a folder.
    """
    if not results.is_dir():
        raise InvalidInput(f"there is no results folder {results}")
    loaded: list[LoadedRecord] = []
    refused: list[RefusedFile] = []
    asked: dict[int, Asked] = {}
    for path, found in RecordReader(derived).read(record_files(results) if files is None else files):
        shown = path.relative_to(results).as_posix()
        if isinstance(found, RefusedFile):
            refused.append(RefusedFile(f"{shown}: {found}"))
            continue
        cell = LoadedRecord(found, shown, results)
        # Whoever shares the object is kept beside it, so that its address is nobody else's.
        cell.__dict__["asked"] = asked.setdefault(id(found.resolved), Asked(found.resolved))
        loaded.append(cell)
    return LoadedResults(results, tuple(loaded), tuple(refused))


def load_one(path: Path, results: Path) -> LoadedRecord:
    """The record at `path`. Raises RefusedFile with the path and the reason."""
    shown = path.relative_to(results).as_posix() if path.is_relative_to(results) else path.name
    try:
        record = read_record(path)
    except RefusedFile as error:
        raise RefusedFile(f"{shown}: {error}") from None
    return LoadedRecord(record, shown, results if path.is_relative_to(results) else path.parent)


def record_files(results: Path) -> Iterator[Path]:
    """All that may be records, sorted, and folders that are links: they are not followed, and reported like any refused file."""
    for parent, folders, files in os.walk(results / RECORDS, followlinks=False):
        folders.sort()
        yield from (link for name in folders if (link := Path(parent, name)).is_symlink())
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".json") and not name.startswith("."))


UNMEASURED = ""
"""Key of the group of rows that have no numbers and no siblings with numbers."""
RowKey = tuple[str, str, str]
"""What makes records one row, whatever their seeds: spec name, label, and for imported records how they were measured,
since one tool may write a file per task or domain."""
NOT_IDENTITY = frozenset({"resources", "metrics"})
"""Parts of a resolved spec that do not change what was trained or steered: only others make a record of another version."""


def within(spec: str, suite: str | None) -> bool:
    """Whether a spec is the one named, lies in the folder of that name, or nothing is named."""
    return suite is None or f"{spec}/".startswith(f"{suite.rstrip('/')}/")


def suite_of(name: str) -> str:
    """First component of a spec's name."""
    return name.partition("/")[0]


SMALL = "pocket"
"""The adapter of the model that ships with this project; what was measured on models of others stands before it."""


def on_small_model(cell: LoadedRecord) -> bool:
    """Whether a record is about the model that ships with this project."""
    model = cell.record.resolved.get("model")
    return isinstance(model, dict) and model.get("adapter") == SMALL


def newest(cells: Iterable[LoadedRecord]) -> tuple[list[LoadedRecord], list[LoadedRecord]]:
    """For each spec, label and seed the newest record; and all others.

    Seeds left over from an older version of the spec are among the others: the rows of a table must not mix versions.
    """
    by_seed: dict[tuple[RowKey, int], list[LoadedRecord]] = defaultdict(list)
    for cell in cells:
        by_seed[row_key(cell.record), cell.record.seed].append(cell)
    rows: dict[RowKey, list[LoadedRecord]] = defaultdict(list)
    older: list[LoadedRecord] = []
    for (row, _), found in sorted(by_seed.items()):
        *replaced, latest = sorted(found, key=age_of)
        older += replaced
        rows[row].append(latest)
    current: list[LoadedRecord] = []
    for members in rows.values():
        identity = max(members, key=age_of).asked.identity
        for cell in members:
            (current if cell.asked.identity == identity else older).append(cell)
    return current, older


def row_key(record: Record) -> RowKey:
    """The row that a record belongs to."""
    return record.spec.name, record.label, group_key(record) if record.imported else ""


def content_of(cells: Sequence[LoadedRecord]) -> str | None:
    """A digest of the statistics of some records; None where one of them has none."""
    digests = [cell.record.documents.sha256 for cell in cells if cell.record.documents]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if 0 < len(digests) == len(cells) else None


def age_of(cell: LoadedRecord) -> tuple[object, str]:
    """What records are ordered by in time. Of two from the same second the path decides, so that tables never flicker."""
    return cell.created, cell.path


def group_key(record: Record) -> str:
    """Records with equal keys were measured alike on the same domains."""
    keys = {domain: agreed.key for domain, agreed in record.compared.items()}
    return canonical(keys) if keys else UNMEASURED
