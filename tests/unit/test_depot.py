"""What travels between machines without a shared disk: all of it or nothing, checked on arrival, and never out of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentbench.core.errors import DamagedArtifact, InvalidInput, RefusedFile
from latentbench.distributed.node_copy import Apart, NodeCopy, node_copy
from latentbench.execute.job import Job
from latentbench.execute.placement import Placement, local_jobs
from latentbench.execute.ray_home import project_files
from latentbench.plan.plan import make_plan
from latentbench.spec.project import load_specs
from latentbench.store import depot as depots
from latentbench.store.depot import PROJECT, RESULTS, Depot, carry, checkpoint_name, object_name
from latentbench.store.store import Store
from tests.support.project import Workbench

KEY, OTHER = "ab" * 32, "cd" * 32
SAE = object_name("sae", KEY)
BYTES = bytes(range(256)) * 5


@pytest.fixture
def home(tmp_path: Path) -> Depot:
    """A machine with one artifact, a project with two files, and results."""
    root = tmp_path / "home"
    write(root / "store", KEY)
    for name in ("data/train.jsonl", "secret.txt"):
        (root / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "project" / name).write_bytes(BYTES)
    takes = {SAE, RESULTS, object_name("sae", OTHER), checkpoint_name(OTHER)}
    return Depot(root / "store", root / "project", root / "results", {"data/train.jsonl"}, takes)


@pytest.fixture
def node(tmp_path: Path, home: Depot, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeCopy]:
    """A node that has fetched what the job may read."""
    monkeypatch.setenv("LB_DISK", str(tmp_path / "node"))
    names = (SAE, object_name("sae", OTHER), checkpoint_name(OTHER))
    with node_copy(Apart("$LB_DISK/scratch", names), home) as copy:
        yield copy


def write(store: Path, key: str, content: bytes = BYTES) -> None:
    with Store(store).writing("sae", key, {"payload": "x"}) as folder:
        (folder / "weights").write_bytes(content)
        (folder / "empty").write_bytes(b"")


@pytest.mark.parametrize("chunk", [1 << 20, 256, 100])
def test_an_artifact_arrives_whole_in_pieces_of_any_size(
    tmp_path: Path, home: Depot, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(depots, "CHUNK_BYTES", chunk)
    there = Depot(tmp_path / "there")
    assert carry(SAE, home, there) > len(BYTES)
    arrived = Store(tmp_path / "there").get("sae", KEY)
    assert arrived is not None
    assert (arrived.folder / "weights").read_bytes() == BYTES
    assert carry(SAE, home, there) == 0, "what is there does not travel again"
    assert carry(object_name("sae", OTHER), home, there) == 0, "what is nowhere does not travel at all"
    assert not list((tmp_path / "there/tmp").iterdir())


class Faulty(Depot):
    """Sends other bytes than it says."""

    def read(self, name: str, file: str, start: int) -> bytes:
        return super().read(name, file, start).replace(b"\x07", b"\x08")


def test_what_was_changed_on_its_way_leaves_nothing(tmp_path: Path, home: Depot) -> None:
    there = Depot(tmp_path / "there")
    with pytest.raises(DamagedArtifact, match="did not arrive as it was sent"):
        carry(SAE, Faulty(tmp_path / "home/store"), there)
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file()]


def test_an_artifact_is_taken_only_under_the_name_in_its_manifest(tmp_path: Path, home: Depot) -> None:
    wrong, there = object_name("sae", OTHER), Depot(tmp_path / "there")
    draft = there.begin(wrong)
    seals = home.listing(SAE)
    for file in seals:
        there.write(draft, file, home.read(SAE, file, 0))
    with pytest.raises(DamagedArtifact, match="another artifact than its name says"):
        there.accept(wrong, draft, seals)
    assert Store(tmp_path / "there").get("sae", OTHER) is None


def test_a_damaged_artifact_is_not_sent(tmp_path: Path, home: Depot) -> None:
    (Store(tmp_path / "home/store").folder("sae", KEY) / "weights").write_bytes(b"other")
    assert home.listing(SAE) == {}


@pytest.mark.parametrize(
    "name", ["objects/sae/../../x", "objects/sae/short", "partial/..", "other", "", "objects/S/" + KEY]
)
def test_a_name_leads_nowhere_else(home: Depot, name: str) -> None:
    for ask in (home.listing, home.begin):
        with pytest.raises(RefusedFile):
            ask(name)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\0b"])
def test_a_file_leads_nowhere_else(tmp_path: Path, home: Depot, file: str) -> None:
    draft = home.begin(RESULTS)
    with pytest.raises(RefusedFile):
        home.write(draft, file, b"x")
    with pytest.raises(RefusedFile):
        home.read(SAE, file, 0)
    with pytest.raises(RefusedFile):
        home.accept(RESULTS, draft, {file: (1, KEY)})


def test_a_link_in_a_folder_leads_nowhere_else(tmp_path: Path, home: Depot) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "home/results").mkdir()
    (tmp_path / "home/results/records").symlink_to(outside)
    node = Depot(tmp_path / "node", results=tmp_path / "left")
    (tmp_path / "left/records").mkdir(parents=True)
    (tmp_path / "left/records/x.json").write_text("{}")
    with pytest.raises(RefusedFile, match="leads out of its folder"):
        carry(RESULTS, node, home)
    assert not list(outside.iterdir())


def test_home_takes_and_gives_no_more_than_it_was_made_for(tmp_path: Path, home: Depot) -> None:
    assert list(home.listing(PROJECT)) == ["data/train.jsonl"]
    with pytest.raises(RefusedFile, match="no file that the specs name"):
        home.read(PROJECT, "secret.txt", 0)
    for name in (PROJECT, object_name("sae", "ef" * 32), checkpoint_name(KEY)):
        with pytest.raises(RefusedFile):
            home.begin(name)
    (tmp_path / "left/store").mkdir(parents=True)
    (tmp_path / "left/store/x").write_text("x")
    with pytest.raises(RefusedFile, match="nothing that a job leaves"):
        carry(RESULTS, Depot(tmp_path / "node", results=tmp_path / "left"), home)
    assert not (tmp_path / "home/results/store").exists()


def test_a_node_fetches_what_it_lacks_and_brings_back_what_it_made(tmp_path: Path, home: Depot, node: NodeCopy) -> None:
    assert (node.project / "data/train.jsonl").read_bytes() == BYTES
    assert not (node.project / "secret.txt").exists()
    assert Store(node.store).has("sae", KEY)
    at_home = Store(tmp_path / "home/store")
    partial = node.store / "partial" / OTHER
    partial.mkdir(parents=True)
    for state in (b"first", b"second"):
        (partial / "draft").write_bytes(state)
        (partial / "draft").rename(partial / "state")
        node.bring_back(at_once=True)
        assert (at_home.checkpoint(OTHER) / "state").read_bytes() == state
    write(node.store, OTHER)
    node.bring_back(at_once=True)
    assert at_home.get("sae", OTHER) is not None
    assert not at_home.checkpoint(OTHER).exists(), "what is finished needs no checkpoint"


def test_what_a_job_leaves_goes_home_however_it_ends_and_the_node_keeps_artifacts_alone(
    tmp_path: Path, home: Depot
) -> None:
    def work() -> None:
        with node_copy(Apart(str(tmp_path / "node"), (SAE,)), home) as copy:
            for name in ("records/mine/x.safetensors", "records/mine/x.json", "logs/x.log"):
                (copy.results / name).parent.mkdir(parents=True, exist_ok=True)
                (copy.results / name).write_text(name)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert (tmp_path / "home/results/records/mine/x.json").read_text() == "records/mine/x.json"
    assert (tmp_path / "home/results/logs/x.log").is_file()
    assert not list((tmp_path / "node/jobs").iterdir())
    assert Store(tmp_path / "node/store").has("sae", KEY)


def test_a_file_of_the_project_that_was_damaged_on_the_node_is_fetched_again(tmp_path: Path, home: Depot) -> None:
    for _ in range(2):
        with node_copy(Apart(str(tmp_path / "node"), ()), home) as copy:
            assert (copy.project / "data/train.jsonl").read_bytes() == BYTES
        (kept,) = (path for path in (tmp_path / "node/files").rglob("*") if path.is_file())
        kept.write_bytes(b"other")


@pytest.mark.parametrize("scratch", ["$LB_UNSET/x", "relative"])
def test_a_scratch_folder_without_a_meaning_on_the_node_is_refused(home: Depot, scratch: str) -> None:
    with pytest.raises(InvalidInput, match="must be an absolute path"):
        NodeCopy(Apart(scratch, ()), home)


def job(bench: Workbench, **changes: Any) -> Job:
    bench.spec(**changes)
    project = bench.project
    plan = make_plan(load_specs(project, ["mine"]), Store(project.store), project.results, project.roots)
    (made,) = local_jobs(plan, project, "cpu", 1)
    return made


def test_files_that_a_spec_names_are_found_and_no_others(bench: Workbench) -> None:
    bench.write("data/more/a.jsonl", '{"text": "ore"}\n' * 20)
    bench.write("data/unnamed.jsonl", "")
    bench.write("topk.txt", "no path, though a spec says topk")
    found = project_files([job(bench, dataset__eval__lab__path="data/more/*.jsonl")])
    assert {"model/config.json", "data/train.jsonl", "data/more/a.jsonl"} <= found
    assert all(name.startswith(("model/", "data/")) for name in found)
    assert not found & {"data/unnamed.jsonl", "topk.txt", "specs/mine.yaml"}
    assert not any("results" in name for name in found)


def test_a_job_is_told_where_its_files_are_on_the_node(bench: Workbench, node: NodeCopy) -> None:
    made = job(bench)
    there = Job.from_json(json.loads(json.dumps(node.localised(made.to_json()))))
    assert (there.store, there.results, there.roots.project) == (node.store, node.results, node.project)
    assert there.to_json()["cells"] == made.to_json()["cells"]


def test_a_scratch_folder_is_for_ray_alone(bench: Workbench) -> None:
    bench.spec()
    plan = make_plan(
        load_specs(bench.project, ["mine"]), Store(bench.project.store), bench.project.results, bench.project.roots
    )
    with pytest.raises(InvalidInput, match="use it with --executor ray"):
        Placement(scratch="/tmp").check(plan, bench.project)
