"""SECURITY.md names the test of every guard, and the tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]


def test_every_guard_has_a_test_that_exists() -> None:
    written = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)\(", written, re.MULTILINE))
    for row in ROWS:
        way, guard, test = (cell.strip() for cell in row.strip("|").split(" | "))
        assert way
        assert guard
        assert re.fullmatch(r"`test_\w+`", test), row
        assert test.strip("`") in known, row
    assert len(ROWS) > 20


def test_every_file_it_names_exists() -> None:
    for name in re.findall(r"`((?:harness|adapters|tests)/[\w/.]+)`", (ROOT / "SECURITY.md").read_text("utf-8")):
        assert (ROOT / name).exists(), name
