"""`latentbench bench cache`: both streams are compared, and nothing is left behind."""

from __future__ import annotations

import json

from tests.conftest import Command
from tests.support.project import Workbench


def test_it_compares_reading_with_computing(bench: Workbench, command: Command) -> None:
    bench.spec("one")
    found = json.loads(command("bench", "cache", "one", "--json").out)
    assert found["equal"] is True
    assert found["tokens"] == 1024
    assert found["bytes"] > 1024 * 4
    assert min(found["computing"], found["storing"], found["reading"], found["speedup"]) > 0
    assert not list((bench.root / "results/store").glob("bench-*"))
    said = command("bench", "cache", "one").out
    assert "batches are equal" in said
