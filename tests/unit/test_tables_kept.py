"""What tables keep from one time to the next changes none of their bytes, and hides no damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latentbench.leaderboard import evidence, inference
from latentbench.leaderboard.api import compare_records, leaderboard, write_leaderboard_md
from latentbench.leaderboard.load import load
from latentbench.records import reading
from latentbench.records.reading import RecordReader
from latentbench.records.results import read_record
from latentbench.store.derived import DERIVED, Derived
from tests.unit.leaderboard_factory import Planted, rewritten, write

FORMATS = ("md", "terminal", "json", "csv", "latex", "html")


def planted(results: Path) -> None:
    """Two specs of two rows with several seeds, a run that failed, an older record, and rows that lack an interval."""
    for name in ("papers/one", "papers/two"):
        for label, error in (("", 0.2), ("sae.k=8", 0.21)):
            write(results, *(Planted(name, label, seed, error=error + len(name) / 999) for seed in range(3)))
    write(results, Planted("papers/two", "few", 0, documents=8), Planted("papers/two", "few", 1, documents=8))
    write(results, Planted("quickstart/topk", status="failed", seed=1), Planted("quickstart/topk", seed=0))
    write(results, Planted("papers/one", "", 0, error=0.5, created="2020-01-01T00:00:00+00:00"))


def tables(results: Path, store: Path | None) -> dict[str, str]:
    found = {name: leaderboard(results, name, store=store) for name in FORMATS}  # type: ignore[arg-type]
    return found | {"suite": leaderboard(results, "json", "papers/one", store=store)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    planted(tmp_path / "results")
    return tmp_path / "results"


def test_tables_have_the_same_bytes_with_an_empty_a_full_and_a_deleted_cache(results: Path, tmp_path: Path) -> None:
    alone, store = tables(results, None), tmp_path / "store"
    # A short table first, so that some of a row's intervals are known when the others are worked out.
    leaderboard(results, "terminal", store=store)
    assert tables(results, store) == alone
    assert tables(results, store) == alone, "from what is kept"
    (store / DERIVED).unlink()
    assert tables(results, store) == alone


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_tables_have_the_same_bytes_with_a_damaged_cache(results: Path, tmp_path: Path, damage: str) -> None:
    alone, store = leaderboard(results, "json"), tmp_path / "store"
    assert leaderboard(results, "json", store=store) == alone
    whole = (store / DERIVED).read_bytes()
    (store / DERIVED).write_bytes(whole[: len(whole) // 2] if damage == "truncated" else os.urandom(len(whole)))
    assert leaderboard(results, "json", store=store) == alone
    assert leaderboard(results, "json", store=store) == alone


def test_what_was_worked_out_is_not_worked_out_again(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {name: leaderboard(results, name, store=tmp_path) for name in ("md", "json")}  # type: ignore[arg-type]

    def never(*args: object) -> None:
        raise AssertionError("worked out again")

    monkeypatch.setattr(reading, "checked", never)
    monkeypatch.setattr(evidence, "SeedStatistics", never)
    monkeypatch.setattr(inference, "exchange_tests", never)
    assert {name: leaderboard(results, name, store=tmp_path) for name in first} == first  # type: ignore[arg-type]


def test_only_the_row_of_a_new_record_is_worked_out(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaderboard(results, "json", store=tmp_path)
    write(results, Planted("papers/two", "sae.k=8", 3, error=0.6))
    checked, rows = [], []
    real_check, real_row = reading.checked, evidence.SeedStatistics

    def check(path: Path, content: bytes) -> object:
        checked.append(path)
        return real_check(path, content)

    def row(seeds: list[object]) -> object:
        rows.append(len(seeds))
        return real_row(seeds)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "checked", check)
    monkeypatch.setattr(evidence, "SeedStatistics", row)
    found = leaderboard(results, "json", store=tmp_path)
    assert len(checked) == 1
    assert 4 in rows, "the row that has one seed more"
    assert len(rows) <= 4, "and those it is tested against"
    monkeypatch.undo()
    assert found == leaderboard(results, "json")


def altered(path: Path, content: bytes) -> None:
    """Other bytes under the same size and times."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_altered_record_is_found_although_it_was_sound_before(results: Path, tmp_path: Path) -> None:
    leaderboard(results, "json", store=tmp_path)
    path = next((results / "records" / "papers/one").glob("*.json"))
    content = path.read_bytes()
    at = content.index(b'"value": 0.') + len(b'"value": 0.')
    altered(path, content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :])
    found = {cell.path: cell.record for cell in load(results, Derived(tmp_path)).loaded}
    record = found[path.relative_to(results).as_posix()]
    assert record.status == "damaged"
    assert record == read_record(path)
    assert leaderboard(results, "json", store=tmp_path) == leaderboard(results, "json")


def test_altered_statistics_are_found_although_they_were_sound_before(results: Path, tmp_path: Path) -> None:
    leaderboard(results, "json", store=tmp_path)
    path = next((results / "records" / "papers/one").glob("*.safetensors"))
    content = path.read_bytes()
    altered(path, content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    found = {cell.path: cell.record for cell in load(results, Derived(tmp_path)).loaded}
    record = found[path.with_suffix(".json").relative_to(results).as_posix()]
    assert record.status == "damaged"
    assert record.error is not None
    assert "sha256 differs" in record.error.message
    assert leaderboard(results, "json", store=tmp_path) == leaderboard(results, "json")
    path.unlink()
    assert leaderboard(results, "json", store=tmp_path) == leaderboard(results, "json")


def test_a_number_altered_together_with_its_digest_is_found(results: Path, tmp_path: Path) -> None:
    leaderboard(results, "json", store=tmp_path)
    path = next((results / "records" / "papers/one").glob("*.json"))
    numbers = json.loads(path.read_text())["metrics"]
    numbers[0]["value"] += 0.125
    rewritten(path, metrics=numbers)
    assert leaderboard(results, "json", store=tmp_path) == leaderboard(results, "json")
    assert "is damaged" in leaderboard(results, "md", store=tmp_path)


def test_other_estimators_check_again(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a record was checked with is installed, and may be another version tomorrow."""
    leaderboard(results, "json", store=tmp_path)
    checked: list[Path] = []
    real = reading.checked
    monkeypatch.setattr(reading, "checked", lambda path, content: (checked.append(path), real(path, content))[1])
    monkeypatch.setattr(reading, "_estimators", lambda metrics: "others")
    load(results, Derived(tmp_path))
    assert len(checked) == len(list((results / "records").rglob("*.json")))


def test_a_record_read_again_equals_the_one_that_was_validated(results: Path, tmp_path: Path) -> None:
    paths = sorted((results / "records").rglob("*.json"))
    for _ in ("cold", "warm"):
        for path, record in RecordReader(Derived(tmp_path)).read(paths):
            assert record == read_record(path)
            assert not isinstance(record, Exception)
            assert record.plain() == read_record(path).plain()


def test_the_table_is_written_only_when_it_changes(results: Path, tmp_path: Path) -> None:
    path = write_leaderboard_md(results, tmp_path)
    os.utime(path, (1, 1))
    write_leaderboard_md(results, tmp_path)
    assert path.stat().st_mtime == 1
    write(results, Planted("papers/three"))
    write_leaderboard_md(results, tmp_path)
    assert path.stat().st_mtime > 1
    assert path.read_text() == leaderboard(results, "md")


def test_comparisons_know_what_tables_worked_out(results: Path, tmp_path: Path) -> None:
    leaderboard(results, "json", store=tmp_path)
    sides = ("papers/one[]", "papers/one[sae.k=8]")
    assert compare_records(results, *sides, "json", store=tmp_path) == compare_records(results, *sides, "json")
