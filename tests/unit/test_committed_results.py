"""The results in the repository: every record is whole, and the table follows from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.canonical import file_digest
from harness.leaderboard import leaderboard
from harness.results import read_record

RESULTS = Path(__file__).parents[2] / "results"
RECORDS = sorted((RESULTS / "records").rglob("*.json"))


def test_there_are_results() -> None:
    assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_committed_record_is_whole(path: Path) -> None:
    record = read_record(path)
    assert record.status == "ok"
    assert path.stem.endswith(f"seed{record.seed}-{record.cell[:12]}")
    assert path.parent == RESULTS / "records" / record.spec.name
    assert record.documents is not None
    assert file_digest(path.with_name(record.documents.file)) == record.documents.sha256


def test_the_table_is_what_the_records_say() -> None:
    assert (RESULTS / "LEADERBOARD.md").read_text("utf-8") == leaderboard(RESULTS, "md")
