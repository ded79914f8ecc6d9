"""What is between a plan and its workers: files of jobs, contents of the store, and processes that start light."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentbench.core.errors import DamagedArtifact
from latentbench.distributed.worker_process import Event, WorkerFailure
from latentbench.execute.executors import submit
from latentbench.execute.job import Job
from latentbench.execute.placement import Placement, local_jobs
from latentbench.execute.training_launcher import RankJob
from latentbench.plan.plan import Plan, make_plan
from latentbench.records.results import find_record
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from latentbench.study.storage import CONTENT, META, stored_content, write_content
from tests.support.project import Workbench

KEY = "ab" * 32
TWO = [{"label": "four", "sae": {"k": 4}}, {"label": "eight", "sae": {"k": 8}}]
"""Cases of a spec that are trained together."""


def planned(bench: Workbench, **changes: object) -> Plan:
    bench.spec(**changes)
    project = bench.project
    return make_plan(load_specs(project, ["mine"]), Store(project.store), project.results, project.roots)


@pytest.mark.parametrize("module", ["distributed.worker_process", "execute.worker", "execute.training_worker"])
def test_a_worker_watches_its_parent_before_it_loads_anything_heavy(module: str) -> None:
    code = (
        f"import sys, latentbench.{module}; print([m for m in ('torch', 'transformers', 'numba') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_what_nodes_of_a_cluster_import_first_knows_no_specs() -> None:
    code = "import sys, latentbench.distributed.ray_cluster; print('latentbench.spec.experiment' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_jobs_and_their_parts_for_several_devices_are_files_and_back(bench: Workbench) -> None:
    (job,) = local_jobs(planned(bench, cases=TWO), bench.project, "cpu", 1)
    written = json.dumps(job.to_json())
    assert json.dumps(Job.from_json(json.loads(written)).to_json()) == written
    task = RankJob(job, (KEY, "cd" * 32), 1, 2, 8.0)
    again = RankJob.from_json(json.loads(json.dumps(task.to_json())))
    assert (again.keys, again.rank, again.size, again.patience, again.device) == (task.keys, 1, 2, 8.0, "cpu")
    assert replace(again, job=replace(job, device="cuda")).device == "cuda:1"
    # On a node of a cluster it sees the one GPU that it was lent.
    assert replace(again, job=replace(job, device="cuda", spread=True)).device == "cuda:0"


def test_nothing_to_run_needs_no_place(bench: Workbench) -> None:
    nothing = replace(planned(bench), cells=())
    Placement("ray", address="nowhere:1").run(nothing, bench.project, pytest.fail)


def test_a_group_that_is_lost_is_run_one_by_one_and_only_then_blamed(bench: Workbench, tmp_path: Path) -> None:
    (job,) = local_jobs(planned(bench, cases=TWO), bench.project, "cpu", 1)
    loss, told = WorkerFailure("timeout", "Timeout", "stopped after 1 s, its timeout"), list[Event]()
    alone = submit(job, tmp_path).settle(loss, told.append)
    assert [len(part.cells) for part in alone] == [1, 1]
    assert all(find_record(job.results, item.cell, item.key) is None for item in job.cells)
    assert submit(alone[0], tmp_path).settle(loss, told.append) == []
    record = find_record(job.results, job.cells[0].cell, job.cells[0].key)
    assert record is not None
    assert (record.status, record.error and record.error.type) == ("timeout", "Timeout")
    assert [(event.kind, event.status) for event in told] == [("note", ""), ("done", "timeout")]


def stored(root: Path) -> Store:
    store = Store(root)
    with store.writing("study", KEY, {}) as folder:
        write_content(folder, {"a": torch.ones(2, 3).t()}, {"n": 1})
    return store


def test_content_comes_back_as_it_was(tmp_path: Path) -> None:
    found = stored_content(stored(tmp_path), "study", KEY)
    assert found is not None
    assert torch.equal(found.tensors["a"], torch.ones(3, 2))
    assert (found.meta, stored_content(Store(tmp_path), "study", "cd" * 32)) == ({"n": 1}, None)


@pytest.mark.parametrize("name", [CONTENT, META])
def test_damaged_content_is_none_and_put_aside(tmp_path: Path, name: str) -> None:
    stored(tmp_path)
    path = Store(tmp_path).folder("study", KEY) / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert stored_content(Store(tmp_path), "study", KEY) is None
    assert not path.exists()
    assert list((tmp_path / "quarantine").rglob(name))


def test_content_that_was_written_by_something_else_is_an_error(tmp_path: Path) -> None:
    with Store(tmp_path).writing("study", KEY, {}) as folder:
        (folder / "notes.txt").write_text("neither tensors nor metadata")
    with pytest.raises(DamagedArtifact, match="cannot be read"):
        stored_content(Store(tmp_path), "study", KEY)
