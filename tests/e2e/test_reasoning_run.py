"""Reasoning accuracy from a spec to the table, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentbench.report import figures
from tests.conftest import Command
from tests.support.project import Workbench

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC: dict[str, Any] = {
    "model": {"adapter": "pocket"},
    "dataset": {
        "eval": {"general": {"adapter": "pocket", "domain": "general", "split": "eval", "documents": 12, "context": 32}}
    },
    "steering": {"method": "none"},
    "metrics": [{"reasoning_accuracy": {"task": "pocket_problems", "limit": 12}}, {"capability_cost": {}}],
    "matrix": {"steering": [{"method": "none"}, {"method": "prefix", "text": " To find out, go step by step."}]},
}


def write(bench: Workbench, **changes: Any) -> None:
    bench.write("specs/mine.yaml", yaml.safe_dump({**SPEC, **changes}, sort_keys=False))


def test_a_spec_ends_in_rows_that_can_be_compared(bench: Workbench, command: Command) -> None:
    write(bench)
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    plain, led = bench.records().values()
    assert (plain.status, led.status) == ("ok", "ok")
    accuracy, gain, p = (
        {r.cell: _number(r, f"reasoning_accuracy.{name}") for r in (plain, led)}
        for name in ("accuracy", "gain", "gain_p")
    )
    assert gain[plain.cell].value == 0
    assert gain[led.cell].value == pytest.approx(accuracy[led.cell].value - accuracy[plain.cell].value)
    assert gain[led.cell].value > 0.5
    assert p[led.cell].value < 0.01
    assert accuracy[led.cell].ci is not None
    assert (accuracy[led.cell].n, accuracy[led.cell].domain) == (12, "pocket_problems")
    assert plain.comparability["pocket_problems"].key == led.comparability["pocket_problems"].key
    assert _number(plain, "capability_cost.kl").value == 0
    pages = {path.name: path.read_text("utf-8") for path in (bench.root / "results/pages").glob("*-steering.html")}
    assert set(pages) == {f"{record.cell[:16]}-steering.html" for record in (plain, led)}
    for page in pages.values():  # each beside the other
        assert all(json.dumps(figures.shown(record.label)) in page for record in (plain, led))
        assert "Accuracy against cost" in page


def test_a_swept_scale_is_chosen_on_problems_that_are_not_reported(bench: Workbench, command: Command) -> None:
    vectors = {"method": "random", "like": 0.5, "layers": [3]}
    tasks = [
        {"reasoning_accuracy": {"task": task, "limit": 10}} for task in ("pocket_problems_selection", "pocket_problems")
    ]
    write(bench, steering=vectors, matrix={"steering.scale": [0.0, 4.0]}, metrics=[*tasks, "capability_cost"])
    assert command("run", "mine", "--executor", "inline").code == 0
    asked = ("report", "scales", "mine", "--selection", "pocket_problems_selection")
    (found,) = json.loads(command(*asked, "--json").out)
    assert found["scales"] == [0.0, 4.0]
    assert found["columns"]["kl general"]["0.0"] == 0
    shown = command(*asked, "--texts", "general", "--most-kl", "0").out
    assert [line.split()[0] for line in shown.splitlines() if line.endswith("← chosen")] == ["0"]
    refused = command("report", "scales", "mine", "--selection", "nothing")
    assert refused.code == 2
    assert "no record has reasoning_accuracy.accuracy on 'nothing'" in refused.err


def _number(record: Any, name: str) -> Any:
    (value,) = (value for value in record.metrics if value.id == name)
    return value


def test_nothing_is_generated_twice(bench: Workbench, command: Command) -> None:
    write(bench, matrix={})
    assert command("run", "mine", "--executor", "inline").code == 0
    kept = bench.root / "results/store/cache/responses.sqlite3"
    before = kept.read_bytes()
    # Another limit is another stage; the answers to the problems it shares with the first are there already.
    write(bench, matrix={}, metrics=[{"reasoning_accuracy": {"task": "pocket_problems", "limit": 8, "batch": 4}}])
    assert command("run", "mine", "--executor", "inline").code == 0
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "gsm9k"}, "did you mean gsm8k"),
        ({"task": "nowhere.yaml"}, "no task file"),
        ({"task": "../../elsewhere.yaml"}, "outside the project"),
        ({"task": "gsm8k", "samples": 4}, "all the same"),
        ({"task": "pocket_problems", "name": "general"}, "another `name:`"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    bench: Workbench, command: Command, options: dict[str, Any], said: str
) -> None:
    write(bench, matrix={}, metrics=[{"reasoning_accuracy": options}])
    done = command("validate", "mine")
    assert done.code == 2
    assert said in " ".join((done.out + done.err).split())
    assert "Traceback" not in done.err


def test_a_malicious_task_file_is_refused(bench: Workbench, command: Command, tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    bench.write("utils.py", f"open({json.dumps(str(mark))}, 'w')\ndef f(doc): return ''\n")
    bench.write("evil.yaml", "task: evil\ndataset_path: json\ndoc_to_text: !function utils.f\n")
    write(bench, matrix={}, metrics=[{"reasoning_accuracy": {"task": "evil.yaml"}}])
    assert "code" in command("validate", "mine").err
    assert command("run", "mine", "--executor", "inline").code != 0
    assert not mark.exists()
