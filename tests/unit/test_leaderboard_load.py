"""Reading a results folder: everything readable is read, everything else is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbench.core.errors import InvalidInput
from latentbench.leaderboard.load import load
from tests.unit.leaderboard_factory import Planted, rewritten, write


def test_reads_records_and_their_statistics(tmp_path: Path) -> None:
    write(tmp_path, Planted(seed=0), Planted(seed=1))
    found = load(tmp_path)
    assert [cell.record.seed for cell in found.loaded] == [0, 1]
    assert found.refused == ()
    assert found.loaded[0].path.startswith("records/quickstart/topk/seed0-")
    assert found.loaded[0].statistics()["general/tokens"].shape == (60,)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a record"),
        (b"{", "not a record"),
        (b"\xff\xfe", "not a record"),
        (b"[]", "not a record"),
        (b'{"schema": 2}', "schema"),
        (b"[" * 100_000, "not a record"),
        (b'{"unknown": 1}', "not a record"),
    ],
)
def test_malformed_records_are_named_with_the_reason(tmp_path: Path, content: bytes, says: str) -> None:
    good = write(tmp_path, Planted())[0]
    (good.parent / "bad.json").write_bytes(content)
    found = load(tmp_path)
    assert len(found.loaded) == 1
    assert len(found.refused) == 1
    assert "records/quickstart/topk/bad.json" in str(found.refused[0])
    assert says in str(found.refused[0])


@pytest.mark.parametrize("created", ["yesterday", "", "2026-13-01T00:00:00"])
def test_a_record_without_a_time_is_refused(tmp_path: Path, created: str) -> None:
    rewritten(write(tmp_path, Planted())[0], created=created)
    assert len(load(tmp_path).refused) == 1


def test_a_time_without_zone_is_taken_for_utc(tmp_path: Path) -> None:
    rewritten(write(tmp_path, Planted())[0], created="2026-01-01T00:00:00")
    write(tmp_path, Planted(seed=1))
    first, second = load(tmp_path).loaded
    assert first.created == second.created


def test_nan_in_free_form_fields_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, Planted())[0]
    path.write_text(path.read_text().replace('"lr": 0.0008', '"lr": NaN'))
    assert "NaN" in path.read_text()
    assert len(load(tmp_path).refused) == 1


def test_links_are_reported_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    path = write(outside, Planted())[0]
    results = tmp_path / "results"
    folder = results / "records"
    folder.mkdir(parents=True)
    (folder / "file.json").symlink_to(path)
    (folder / "folder").symlink_to(path.parent)
    found = load(results)
    assert found.loaded == ()
    assert len(found.refused) == 2
    assert all("symbolic links are not followed" in str(error) for error in found.refused)


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no results folder"):
        load(tmp_path / "absent")
    assert load(tmp_path).loaded == ()
