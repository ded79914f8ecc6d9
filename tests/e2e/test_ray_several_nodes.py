"""One SAE trained on several nodes of a Ray cluster: two and more raylets on this machine, each with a device of its own.

Node counts, not machines, are what Ray places by, so everything but the network between them is real.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from latentbench.sae.artifact import load_training
from tests.conftest import furnish
from tests.e2e.test_ray_faults import wait_for
from tests.support.project import SOURCES, Workbench
from tests.support.ray import NEEDS_RAY, SMALL, start_cluster

pytestmark = [NEEDS_RAY, pytest.mark.slow]

TWO_DEVICES = {
    "training__devices": 2,
    "resources__cpus": 1,
    "dataset__train__tokens": 24_000,
    "training__buffer": 1024,
    "dataset__train__repeat": True,
    "metrics": ["explained_variance"],
}


@contextmanager
def nodes(*cpus: int) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head computes nothing, and nodes with so many processors each."""
    # As in clusters that `joined` starts: Ray would have its workers step back behind everything else that is tested.
    cluster = start_cluster(num_cpus=0, _system_config={"worker_niceness": 0})
    try:
        yield cluster, [cluster.add_node(num_cpus=number, **SMALL) for number in cpus]
    finally:
        cluster.shutdown()


HIDES = shutil.which("unshare") is not None and subprocess.run(["unshare", "--mount", "true"]).returncode == 0
"""Whether a process here can be given a file system of its own, which takes root."""


@contextmanager
def node_apart(cluster: Any, folder: Path, hidden: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node with one processor and a disk of its own at `folder`; it does not see what is in `hidden`, where it can be kept
    from it. As its user starts it: by `ray start`."""
    ray = shlex.join([sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}"])
    ray += f" --num-cpus=1 --object-store-memory={SMALL['object_store_memory']} --block"
    hide = f"mount -t tmpfs nothing {shlex.quote(str(hidden))} && " if HIDES else ""
    command = [*(("unshare", "--mount") if HIDES else ()), "sh", "-c", f"{hide}exec {ray}"]
    environment = {**os.environ, "LB_DISK": str(folder), "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    told = folder.parent / f"{folder.name}.log"
    with told.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "Ray runtime started" in told.read_text() or process.poll() is not None)
        assert process.poll() is None, told.read_text()
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a node as a power cut does."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def project(root: Path, model: Path, **changes: Any) -> Workbench:
    bench = Workbench(furnish(root, model).root)
    bench.spec(**{**TWO_DEVICES, **changes})
    return bench


def on(cluster: Any) -> tuple[str, ...]:
    return ("run", "--executor", "ray", "--address", cluster.address, "--device", "cpu")


def steps(bench: Workbench) -> list[dict[str, int]]:
    """How many steps of each SAE were made on how many devices."""
    folders = sorted((bench.root / "results/store/objects/sae").glob("*/*"))
    return [load_training(folder)["devices"] for folder in folders]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workbench:
    """The same training by two processes of this machine."""
    bench = project(tmp_path_factory.mktemp("alone") / "project", tiny_model)
    done = bench.process("run", "--executor", "inline", "--device", "cpu")
    assert done.code == 0, done.err
    return bench


def node_of_worker(bench: Workbench) -> str:
    """The first digits of the node on which a cell's worker runs, which its log tells."""
    (log,) = (path for path in (bench.root / "results/logs").glob("*.log") if "-rank" not in path.name)
    return re.findall(r"\((\w{8})\)", log.read_text().splitlines()[0])[0]


SAID = {"of the worker": "is run again elsewhere", "of the other process": "goes on from the last checkpoint"}
"""What is told when a node dies, by whose it was."""


@pytest.mark.parametrize("victim", SAID)
def test_two_nodes_make_the_sae_of_two_processes_bit_for_bit_though_one_dies(
    tmp_path: Path, tiny_model: Path, alone: Workbench, victim: str
) -> None:
    bench = project(tmp_path / "project", tiny_model)
    with nodes(1, 1) as (cluster, added):
        process = bench.start(*on(cluster))
        wait_for(lambda: list((bench.root / "results/store/partial").glob("*/state*")))
        worker = node_of_worker(bench)
        (node,) = [one for one in added if one.node_id.startswith(worker) == (victim == "of the worker")]
        cluster.add_node(num_cpus=1, **SMALL)
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert SAID[victim] in err
    assert bench.weights() == alone.weights()
    assert steps(bench) == steps(alone)
    assert {*steps(bench)[0]} == {"2"}


def apart(cluster: Any) -> tuple[str, ...]:
    return (*on(cluster), "--scratch", "$LB_DISK/latentbench")


def objects(store: Path) -> set[tuple[str, str]]:
    """Kinds and keys of what is in a store, apart from hidden states: they stay on the node that made them."""
    found = {(path.parent.parent.name, path.name) for path in (store / "objects").glob("*/*/*")}
    return {(kind, key) for kind, key in found if kind != "states"}


@pytest.mark.parametrize("victim", SAID)
def test_nodes_without_a_shared_disk_make_the_same_sae_though_one_dies(
    tmp_path: Path, tiny_model: Path, alone: Workbench, victim: str
) -> None:
    """Three nodes, of which the training takes two."""
    bench = project(tmp_path / "project", tiny_model)
    disks, home = [tmp_path / name for name in ("first", "second", "third")], bench.root / "results/store"
    with nodes() as (cluster, _), ExitStack() as stack:
        running = {disk: stack.enter_context(node_apart(cluster, disk, bench.root)) for disk in disks}
        process = bench.start(*apart(cluster))
        wait_for(lambda: list((home / "partial").glob("*/state*")))
        used = [disk for disk in disks if list(disk.glob("latentbench/jobs/*"))]
        (worker,) = [disk for disk in used if list(disk.glob("latentbench/jobs/*/results/logs/*.json"))]
        (other,) = set(used) - {worker}
        end(running[worker if victim == "of the worker" else other])
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "the node it ran on is gone" in err
    assert SAID[victim] in err
    assert bench.weights() == alone.weights()
    assert steps(bench) == steps(alone)
    assert objects(home) == objects(alone.root / "results/store")
    assert not list((home / "partial").iterdir())
