"""Rows of many new records are worked out by other processes; a table has the same bytes whatever becomes of those."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from latentbench.leaderboard import ahead, evidence
from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.load import record_files
from latentbench.records import reading
from latentbench.records.reading import KNOWN
from latentbench.store.derived import Derived
from tests.unit.leaderboard_factory import Planted, write


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Twelve records of four rows, and a file that is none."""
    for label, error in (("a", 0.2), ("b", 0.21), ("c", 0.3), ("d", 0.4)):
        write(tmp_path / "results", *(Planted(f"papers/{label}", "", seed, error=error) for seed in range(3)))
    (tmp_path / "results" / "records" / "bad.json").write_text("{")
    return tmp_path / "results"


def test_a_share_of_the_files_is_checked_and_its_rows_worked_out(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, store = leaderboard(results, "json"), tmp_path / "store"
    assert [path.parent.name for path in record_files(results)] == ["records", *"aaabbbcccddd"]
    ahead.main(str(results), str(store), "0", "7", "whole")
    assert Derived(store).count(KNOWN) == 6, "rows a and b, and not the file that is no record"
    checked, rows = [], []
    real_check, real_row = reading.checked, evidence.intervals_of
    monkeypatch.setattr(reading, "checked", lambda path, content: checked.append(path) or real_check(path, content))
    monkeypatch.setattr(evidence, "intervals_of", lambda row, asked: rows.append(row) or real_row(row, asked))
    assert leaderboard(results, "json", store=store) == alone
    assert len(checked) == 7
    assert len(rows) == 2, "rows c and d"


def test_many_new_records_are_shared_out_once(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, store = {name: leaderboard(results, name) for name in ("json", "md")}, tmp_path / "store"  # type: ignore[arg-type]
    monkeypatch.setattr(ahead, "FEWEST", 10)
    monkeypatch.setattr(ahead, "_EACH", 4)
    monkeypatch.setattr(ahead, "processors", lambda: 3)
    started: list[list[str]] = []
    real = subprocess.Popen

    def start(words: list[str], **options: object) -> object:
        started.append(words[-3:])
        return real(words, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(ahead.subprocess, "Popen", start)
    assert leaderboard(results, "json", store=store) == alone["json"]
    assert started == [["0", "4", "whole"], ["4", "8", "whole"], ["8", "13", "whole"]]
    assert Derived(store).count(KNOWN) == 12
    assert leaderboard(results, "md", store=store) == alone["md"]
    assert len(started) == 3, "what is known is not shared out again"


@pytest.mark.parametrize("command", ["/bin/false", "/no/such/program"])
def test_a_process_that_does_nothing_costs_nothing_but_time(
    results: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = leaderboard(results, "json")
    monkeypatch.setattr(ahead, "FEWEST", 10)
    monkeypatch.setattr(ahead, "_EACH", 4)
    monkeypatch.setattr(ahead, "processors", lambda: 2)
    monkeypatch.setattr(ahead.sys, "executable", command)
    assert leaderboard(results, "json", store=tmp_path / "store") == alone
