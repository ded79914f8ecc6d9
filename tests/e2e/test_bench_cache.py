"""`latentbench bench cache`: sweeps with and without the store are compared, and nothing is left behind."""

from __future__ import annotations

import json

from tests.conftest import Command
from tests.support.project import Workbench


def test_it_compares_stored_with_computed_states(bench: Workbench, command: Command) -> None:
    bench.spec("one")
    found = json.loads(command("bench", "cache", "one", "--saes", "2", "--tokens", "500", "--json").out)
    assert found["equal"] is True
    assert found["processor"]
    assert found["saes"] == 2
    assert 500 <= found["tokens"] < 1024
    assert found["training_bytes"] > 500 * 4
    assert found["document_bytes"] > found["document_tokens"] * 4
    for sweep in (found["live"], found["stored"]):
        assert all(seconds > 0 for part in sweep.values() for seconds in part.values())
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert not list((bench.root / "results/store").glob("bench-*"))
    said = command("bench", "cache", "one", "--saes", "1").out
    assert "weights and numbers are equal" in said


def test_a_spec_that_trains_nothing_step_by_step_is_refused(bench: Workbench, command: Command) -> None:
    bench.spec("one", sae={"variant": "mean"})  # fitted in one go
    done = command("bench", "cache", "one")
    assert done.code != 0
    assert "not trained step by step; name another spec" in done.err
