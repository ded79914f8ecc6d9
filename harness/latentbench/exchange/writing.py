"""Exports that are folders of files, one per record: for SAEBench's readers and for Every Eval Ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from latentbench.errors import InvalidInput
from latentbench.exchange import every_eval, saebench
from latentbench.exchange.foreign import word
from latentbench.leaderboard.load import Loaded, Results
from latentbench.leaderboard.table import newest, within
from latentbench.section import Json
from latentbench.store.files import new_folder, write_json

FolderFormat = Literal["every-eval-ever", "saebench"]


def write_folder(loaded: Results, format: FolderFormat, output: Path, suite: str | None = None) -> int:
    """Writes the newest records with numbers to the new folder `output`; returns how many files. Raises InvalidInput."""
    current, _ = newest(cell for cell in loaded.loaded if within(cell.record.spec.name, suite))
    files = {name: data for cell in current if cell.record.status == "ok" for name, data in _files(cell, format)}
    if not files:
        raise InvalidInput("there are no records with numbers to export")
    with new_folder(output) as draft:
        for name, data in files.items():
            write_json(draft / name, data)
    return len(files)


def _files(cell: Loaded, format: FolderFormat) -> Iterator[tuple[str, Json]]:
    record = cell.record
    start = f"{word(record.spec.name)}_{word(record.label) + '_' if record.label else ''}{record.cell[:12]}"
    if format == "every-eval-ever":
        yield f"{start}.json", every_eval.log(cell)
        return
    for domain in record.comparability:
        if any(
            m.domain == domain and m.id.startswith(("explained_variance", "cross_entropy", "l0"))
            for m in record.metrics
        ):
            yield f"{start}_{word(domain)}_eval_results.json", saebench.write(record, domain)
