"""A plan says what will run and why, and runs nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentbench.core.errors import Unpinnable
from latentbench.distributed.worker_process import WorkerFailure
from latentbench.plan.plan import Plan, changed_fields, make_plan
from latentbench.records import reading
from latentbench.records.record import Failure, Record
from latentbench.records.results import write_record
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from tests.conftest import Command
from tests.support.packages import install
from tests.support.project import Workbench, documents, write_jsonl


def plan(bench: Workbench, *names: str) -> Plan:
    project = bench.project
    specs = load_specs(project, [str(bench.root / f"specs/{name}.yaml") for name in names])
    return make_plan(specs, Store(project.store), project.results, project.roots)


def record(
    bench: Workbench, made: Plan, index: int = 0, statistics: Mapping[str, np.ndarray] | None = None, **fields: Any
) -> None:
    """Writes a record for a planned cell."""
    item = made.cells[index]
    written = Record(
        cell=item.key,
        spec=item.cell.origin,
        label=item.cell.label,
        resolved=item.cell.experiment.plain(),
        seed=item.cell.seed,
        created="2026-01-01T00:00:00+00:00",
        **{"status": "ok", **fields},
    )
    write_record(bench.project.results, item.cell, written, dict(statistics or {}))


def reasons(made: Plan) -> list[str]:
    return [item.reason for item in made.cells]


def test_a_new_cell_makes_all_its_stages(bench: Workbench) -> None:
    bench.spec()
    (cell,) = plan(bench, "mine").cells
    assert (cell.run, cell.reason) == (True, "no record yet")
    assert [(s.stage.kind, s.run, s.reason) for s in cell.steps] == [
        (kind, True, "not in the store") for kind in ("tokens", "sae", "tokens", "baseline", "measurement")
    ]


def test_planning_writes_nothing(bench: Workbench, command: Command) -> None:
    bench.spec()
    before = sorted(bench.root.rglob("*"))
    assert command("plan").code == 0
    assert command("status").code == 3
    assert sorted(bench.root.rglob("*")) == before


def test_a_good_record_is_reused(bench: Workbench) -> None:
    bench.spec()
    record(bench, plan(bench, "mine"))
    made = plan(bench, "mine")
    assert reasons(made) == ["its record is there"]
    assert not made.to_run
    assert {step.reason for step in made.stages()} == {"not needed, the record is there"}


def test_a_failed_cell_runs_again_and_says_how_it_failed(bench: Workbench) -> None:
    bench.spec()
    loss = WorkerFailure("timeout", "Timeout", "stopped")
    record(bench, plan(bench, "mine"), status=loss.status, error=Failure(stage="worker", type=loss.type, message=""))
    assert reasons(plan(bench, "mine")) == ["its last run timeout (Timeout)"]


def test_a_changed_field_is_named_with_both_values(bench: Workbench) -> None:
    bench.spec()
    record(bench, plan(bench, "mine"))
    bench.spec(sae__k=8, training__lr=1e-3)
    assert reasons(plan(bench, "mine")) == ["changed since its record: sae.k 4 → 8; training.lr 0.0008 → 0.001"]


def test_changed_texts_are_noticed_without_a_change_of_the_spec(bench: Workbench) -> None:
    bench.spec()
    record(bench, plan(bench, "mine"))
    write_jsonl(bench.root / "data/eval.jsonl", documents(9))
    assert reasons(plan(bench, "mine")) == ["definitions or data changed since its record"]


def test_a_changed_limit_changes_nothing(bench: Workbench) -> None:
    bench.spec()
    record(bench, plan(bench, "mine"))
    bench.spec(resources__timeout="1h")
    assert reasons(plan(bench, "mine")) == ["its record is there"]


def test_an_unreadable_record_counts_as_absent(bench: Workbench) -> None:
    bench.spec()
    record(bench, plan(bench, "mine"))
    (path,) = (bench.root / "results/records").rglob("*.json")
    for content in ("{", "{}", path.read_text().replace('"ok"', '"fine"')):
        path.write_text(content)
        assert reasons(plan(bench, "mine")) == ["no record yet"]


def test_a_record_is_checked_once_and_again_when_it_was_altered(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.spec()
    record(bench, plan(bench, "mine"))
    checks: list[Path] = []
    check = reading.checked
    monkeypatch.setattr(reading, "checked", lambda path, content: (checks.append(path), check(path, content))[1])
    assert [reasons(plan(bench, "mine")) for _ in range(3)] == [["its record is there"]] * 3
    (path,) = (bench.project.results / "records").rglob("*.json")
    assert checks == [path]
    whole, before = path.read_bytes(), path.stat()
    path.write_bytes(whole.replace(b'"seed": 0', b'"seed": 1'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reasons(plan(bench, "mine"))[0].startswith("its record is damaged: its digest does not hold")
    path.write_bytes(whole)
    assert reasons(plan(bench, "mine")) == ["its record is there"]
    assert checks == [path] * 2


def test_altered_statistics_are_noticed_by_the_next_plan(bench: Workbench) -> None:
    bench.spec()
    made = plan(bench, "mine")
    record(bench, made, statistics={"general/tokens": np.ones(8)})
    assert reasons(plan(bench, "mine")) == ["its record is there"]
    (path,) = (bench.project.results / "records").rglob("*.safetensors")
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (reason,) = reasons(plan(bench, "mine"))
    assert "its record is damaged" in reason
    assert "sha256 differs" in reason
    path.unlink()
    assert "its record is damaged" in reasons(plan(bench, "mine"))[0]


def test_what_is_in_the_store_and_what_was_left_unfinished_is_told(bench: Workbench) -> None:
    bench.spec()
    store, stages = Store(bench.project.store), {s.stage.kind: s.stage for s in plan(bench, "mine").stages()}
    with store.writing("baseline", stages["baseline"].key, {}):
        pass
    store.checkpoint(stages["sae"].key).mkdir(parents=True)
    told = {s.stage.kind: (s.run, s.reason) for s in plan(bench, "mine").stages()}
    assert told["baseline"] == (False, "in the store")
    assert told["sae"] == (True, "unfinished, continues from its checkpoint")


def test_cells_share_stages(bench: Workbench) -> None:
    bench.spec(matrix={"sae.k": [2, 4]}, seeds=[0, 1])
    made = plan(bench, "mine")
    kinds = [step.stage.kind for step in made.stages()]
    assert (len(made.cells), kinds.count("tokens"), kinds.count("baseline"), kinds.count("sae")) == (4, 2, 1, 4)


def test_specs_of_the_same_name_are_refused(bench: Workbench, command: Command) -> None:
    bench.spec("a", name="same")
    bench.spec("b", name="same")
    done = command("plan")
    assert done.code == 2
    assert "specs/b.yaml:27:7: name: specs/a.yaml already has the name 'same'" in done.err


def test_plan_as_json_links_cells_to_stages_and_stages_to_parents(bench: Workbench, command: Command) -> None:
    bench.spec(matrix={"sae.k": [2, 4]})
    made = json.loads(command("plan", "mine", "--json").out)
    keys = {stage["key"] for stage in made["stages"]}
    assert {key for cell in made["cells"] for key in cell["stages"]} == keys
    assert {parent for stage in made["stages"] for parent in stage["parents"]} <= keys
    assert {cell["action"] for cell in made["cells"]} == {"run"}
    assert {stage["reason"] for stage in made["stages"]} == {"not in the store"}


def test_all_findings_of_all_specs_are_told_before_anything_is_planned(bench: Workbench, command: Command) -> None:
    bench.spec("a", layer=2)
    bench.spec("b", dataset__train__path="absent.txt", dataset__train__tokens=3)
    bench.spec("c", metrics=[{"cross_entropy": {"budgets": [5, 33]}}, "cross_entropy"], model__id="./absent")
    done = command("plan")
    assert done.code == 2
    for words in (
        "specs/a.yaml:4:8: layer: the model has 2 decoder blocks, 0 to 1",
        "dataset.train: no file matches 'absent.txt'",
        "dataset.train.tokens: 3 tokens are fewer than one context of 16",
        "the budget 33 exceeds the 32 latents that the SAE has",
        "the metric 'cross_entropy' stands here twice",
        "model: ./absent is not a model folder: it holds no config.json",
    ):
        assert words in done.err


@pytest.mark.parametrize(
    "path", ["../out.jsonl", "/etc/hostname", "data/link.jsonl", "data/*.jsonl", "x" * 300, "a\0b"]
)
def test_texts_outside_of_the_project_or_beyond_the_system_are_refused(
    bench: Workbench, command: Command, path: str
) -> None:
    write_jsonl(bench.root.parent / "out.jsonl", documents(3))
    (bench.root / "data/link.jsonl").symlink_to(bench.root.parent / "out.jsonl")
    bench.spec(dataset__train__path=path)
    done = command("validate")
    assert done.code == 2
    assert "dataset.train: " in done.err
    assert "Traceback" not in done.err


def test_an_allowed_folder_may_be_read(bench: Workbench, command: Command) -> None:
    write_jsonl(bench.root.parent / "out.jsonl", documents(3))
    bench.spec(dataset__train__path="../out.jsonl")
    assert command("validate", "--allow", str(bench.root.parent)).code == 0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b 1 → 2"]),
        ({"a": 1}, {}, ["a 1 → None"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a [1] → [1, 2]"]),
        ({"a": {"b": 1}}, {"a": None}, ["a {'b': 1} → None"]),
    ],
)
def test_changed_fields(old: Any, new: Any, expected: list[str]) -> None:
    assert changed_fields(old, new) == expected


def test_a_projects_folder_may_stand_anywhere(bench: Workbench, command: Command, tmp_path: Path) -> None:
    bench.spec()
    before = [cell.key for cell in plan(bench, "mine").cells]
    moved = bench.root.rename(tmp_path / "moved")
    assert [cell.key for cell in plan(Workbench(moved), "mine").cells] == before


def test_cells_whose_package_is_not_installed_are_named_and_cost_no_others(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench.spec()
    train = {"adapter": "package", "package": "some-texts", "path": "some_texts/*.jsonl", "tokens": 1000, "context": 16}
    bench.spec("packaged", dataset__train=train)
    reason = "the package some-texts is not installed: pip install --no-deps some-texts"
    made = plan(bench, "mine", "packaged")
    assert [item.cell.origin.name for item in made.cells] == ["mine"]
    assert dict(made.unpinned) == {"packaged[seed=0]": reason}
    told = command("plan")
    assert (told.code, told.out.count(reason)) == (0, 2)  # of the cell, and with the number of cells it holds for
    assert f"open  packaged[seed=0]  {reason}" in command("status").out
    with pytest.raises(Unpinnable, match="some-texts"):
        plan(bench, "packaged")
    install(tmp_path / "site", "some-texts", "1.0", {"some_texts/a.jsonl": b'{"text": "one"}\n'})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert len(plan(bench, "mine", "packaged").cells) == 2
