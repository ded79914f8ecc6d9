"""Steering other than by adding at every token: what `validate` refuses and where, and rows of every kind from a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.support.project import EXPERIMENT, Workbench, merged

ADDED: dict[str, Any] = {"method": "random", "norm": 4.0, "layers": 0}
ROWS: dict[str, dict[str, Any]] = {
    "added": ADDED,
    "turned": {**ADDED, "keep_norm": True},
    "first": {**ADDED, "positions": {"first": 3, "decay": 3}},
    "ablated": {"method": "ablate", "directions": [{"method": "random", "norm": 1.0, "layers": 1}]},
    "clamped": {"method": "sae_latents", "latents": [1, 5], "clamp": 9.0},
    "when": {"method": "conditional", "part": {**ADDED, "layers": 1}, "when": {"latent": 3, "below": 0.5}},
    "probed": {
        "method": "conditional",
        "part": ADDED,
        "when": {"probe": {"method": "random", "norm": 1.0, "layers": 0}, "above": 0.0},
    },
    "in-turn": {"method": "stack", "parts": [ADDED, {"method": "sae_latents", "latents": [2], "times": 0.0}]},
}


def test_every_way_of_steering_is_a_row(bench: Workbench, command: Callable[..., Any]) -> None:
    cases = [{"label": label, "steering": steering} for label, steering in ROWS.items()]
    bench.spec(metrics=["capability_cost"], cases=cases)
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    found = {
        record.label: next(m.value for m in record.metrics if m.id == "capability_cost.kl")
        for record in bench.records().values()
    }
    assert found.keys() == ROWS.keys()
    assert all(value is not None and value > 0 for value in found.values())
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("steering", "says"),
    [
        ({"method": "ablate", "directions": [{"method": "none"}]}, "makes no vector to project out"),
        ({**ADDED, "scope": "first", "positions": {"first": 2}}, "the scope `first` is one token"),
        ({**ADDED, "positions": {"first": 2, "listed": [1]}}, "either `first` or `listed`"),
        ({"method": "sae_latents", "latents": [1]}, "either clamp or times"),
        ({"method": "conditional", "part": ADDED, "when": {"latent": 1}}, "either above or below"),
    ],
)
def test_wrong_combinations_are_refused_with_their_place(
    bench: Workbench, command: Callable[..., Any], steering: dict[str, Any], says: str
) -> None:
    path = bench.spec(metrics=["capability_cost"], steering=steering)
    done = command("validate")
    assert done.code == 2
    lines = path.read_text().splitlines()
    (finding,) = [line for line in done.err.splitlines() if says in line]
    place = finding.split("specs/mine.yaml:")[1].split(": ")[0]
    line, column = map(int, place.split(":")[:2])
    first = lines.index("steering:")
    assert first < line <= first + 1 + len(yaml.safe_dump({"steering": steering}).splitlines())
    assert 0 < column <= len(lines[line - 1])


def test_an_sae_that_is_not_there_is_asked_for(bench: Workbench, command: Callable[..., Any]) -> None:
    for steering in (ROWS["clamped"], ROWS["when"]):
        changes = {"metrics": ["capability_cost"], "steering": steering, "sae": None, "training": None, "layer": None}
        bench.write(
            "specs/mine.yaml", yaml.safe_dump({k: v for k, v in merged(EXPERIMENT, changes).items() if v is not None})
        )
        done = command("validate")
        assert done.code == 2
        assert "this needs one SAE, the spec has 0" in done.err
