"""The records that tables are measured with are sound, and the same seed gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentbench.bench import tables
from latentbench.bench.browser import browser
from latentbench.bench.kept import tables_page
from latentbench.cli.app import app
from latentbench.leaderboard.load import load


def test_generated_records_pass_the_check_of_measured_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tables.generate(tmp_path / name, 7, seed=3)
    loaded = load(tmp_path / "a").loaded
    assert [cell.record.status for cell in loaded] == ["ok"] * 7
    assert {len(cell.numbers) for cell in loaded} == {105}
    assert {(cell.record.label, cell.record.seed) for cell in loaded} >= {
        ("sae.k=0", 0),
        ("sae.k=0", 2),
        ("sae.k=2", 0),
    }
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_every_task_makes_the_same_table_cold_and_warm(tmp_path: Path) -> None:
    tables.generate(tmp_path / "results", 6)
    for task in tables.TASKS.values():
        made = {task(tmp_path / "results", tmp_path / "store") for _ in ("cold", "warm")}
        assert len(made) == 1
        assert "autointerp" in made.copy().pop().lower()


@pytest.mark.slow
def test_the_command_prints_what_each_task_took(tmp_path: Path) -> None:
    kept = tmp_path / "tables.json"
    words = ["bench", "tables", "--records", "6", "--output", str(kept)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert all(task in done.stdout for task in tables.TASKS)
    found = json.loads(kept.read_text())
    assert found["machine"]["processor"] in tables_page(found)
    assert (found["browser"] is not None) == (browser() is not None)
    for task in found["tasks"]:
        assert (task["cold"] is None) == (task["task"] == tables.AFTER_RUN)
        assert 0 < task["warm"]["seconds"] < 60
