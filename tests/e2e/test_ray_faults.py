"""The `ray` executor when things break: workers, nodes, the driver, and a user who presses Ctrl-C once or twice."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import furnish
from tests.support.plugin import Plugin, faulty_sae, install
from tests.support.project import Workbench
from tests.support.ray import NEEDS_RAY, SMALL, address, placed, start_cluster

pytestmark = NEEDS_RAY

MATRIX = {"sae.k": [2, 4]}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(autouse=True)
def _mended(plugin: Plugin) -> Iterator[None]:
    yield
    plugin.mend()


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, plugin: Plugin) -> Workbench:
    made = furnish(tmp_path / "project", tiny_model)
    bench = Workbench(made.root, (plugin.folder,))
    bench.spec(sae=faulty_sae(4), matrix=MATRIX, metrics=["explained_variance"])
    return bench


def on_ray(*more: str) -> tuple[str, ...]:
    return ("run", *placed("ray"), "--device", "cpu", "--workers", "1", *more)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(bench: Workbench) -> list[int]:
    """Process numbers of the workers whose job stands in the project's logs."""
    jobs = str(bench.root / "results/logs").encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if b"latentbench.execute.worker" in command and jobs in command:
            found.append(int(path.parent.name))
    return found


LOSSES = {"kill": ("failed", "Killed", "SIGKILL"), "exit": ("failed", "WorkerDied", "exit code 7")}
SLOW_LOSSES = {
    "hang": ({"resources__timeout": "40s"}, ("timeout", "Timeout", "40 s")),
    "memory": ({"resources__memory": "1500MiB"}, ("failed", "OutOfMemory", "1.46 GiB")),
}


@pytest.mark.parametrize("fault", ["kill", pytest.param("exit", marks=pytest.mark.slow)])
def test_a_lost_worker_costs_only_its_cell_and_the_next_run_mends_it(
    bench: Workbench, plugin: Plugin, fault: str
) -> None:
    plugin.break_with(fault, k=4)
    done = bench.process(*on_ray())
    assert done.code == 3, done.err
    records = bench.records()
    assert records["mine[sae.k=2][0]"].status == "ok"
    error = records["mine[sae.k=4][0]"].error
    assert error is not None
    assert (records["mine[sae.k=4][0]"].status, error.type) == LOSSES[fault][:2]
    assert LOSSES[fault][2] in error.message
    assert error.log is not None
    assert (bench.root / "results" / error.log).is_file()
    plugin.mend()
    assert bench.process("retry", "--failed", *on_ray()[1:]).code == 0
    assert bench.records()["mine[sae.k=2][0]"] == records["mine[sae.k=2][0]"], "only what was missing is computed"


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW_LOSSES)
def test_limits_hold(bench: Workbench, plugin: Plugin, fault: str) -> None:
    limits, expected = SLOW_LOSSES[fault]
    bench.spec(sae=faulty_sae(4), matrix=MATRIX, metrics=["explained_variance"], **limits)
    plugin.break_with(fault, k=4)
    assert bench.process(*on_ray()).code == 3
    broken = bench.records()["mine[sae.k=4][0]"]
    assert broken.error is not None
    assert (broken.status, broken.error.type) == expected[:2]
    assert expected[2] in broken.error.message
    assert bench.records()["mine[sae.k=2][0]"].status == "ok"
    assert not workers_of(bench)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_cleanly_and_twice_at_once(bench: Workbench, plugin: Plugin, times: int) -> None:
    plugin.break_with("hang", k=4)
    process = bench.start(*on_ray())
    wait_for(lambda: plugin.reached)
    assert workers_of(bench)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is kept" in err
    assert "Traceback" not in err
    wait_for(lambda: not workers_of(bench), 20)
    assert bench.records() == {}
    assert bench.process("store", "verify").code == 0
    plugin.mend()
    assert bench.process(*on_ray()).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_workers_end_when_the_run_is_killed(bench: Workbench, plugin: Plugin, executor: str) -> None:
    plugin.break_with("hang", k=4)
    process = bench.start("run", *placed(executor), "--device", "cpu")
    wait_for(lambda: plugin.reached)
    process.kill()
    process.communicate()
    wait_for(lambda: not workers_of(bench), 60)


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing_but_time(tmp_path: Path, tiny_model: Path, plugin: Plugin) -> None:
    """Three nodes; the one that works on a cell is killed, the cell is run again on another."""
    made = furnish(tmp_path / "project", tiny_model)
    bench = Workbench(made.root, (plugin.folder,))
    bench.spec(sae=faulty_sae(4), matrix=MATRIX, metrics=["explained_variance"], seeds=[0, 1])
    cluster = start_cluster(num_cpus=0)
    try:
        added = {node.node_id: node for node in (cluster.add_node(num_cpus=1, **SMALL) for _ in range(2))}
        plugin.break_with("hang", k=4)
        process = bench.start("run", "--executor", "ray", "--address", cluster.address, "--device", "cpu")
        wait_for(lambda: plugin.reached)
        (victim, *_) = workers_of(bench)
        log = Path(Path(f"/proc/{victim}/cmdline").read_bytes().split(b"\0")[-2].decode()).with_suffix(".log")
        (short,) = re.findall(r"\((\w{8})\)", log.read_text().splitlines()[0])
        (node,) = [node for name, node in added.items() if name.startswith(short)]
        cluster.remove_node(node, allow_graceful=False)
        plugin.mend()
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "the node it ran on is gone" in err
        assert {record.status for record in bench.records().values()} == {"ok"}
        assert len(bench.records()) == 4
        before = bench.records()
        again = bench.process("run", "--executor", "ray", "--address", cluster.address, "--device", "cpu")
        assert again.code == 0
        assert bench.records() == before, "nothing was left to compute"
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_gpus_are_leased_in_parts_and_in_several(tmp_path: Path, tiny_model: Path, plugin: Plugin) -> None:
    """Ray counts invented GPUs here: the cells fail for want of real ones, but their logs tell which they were lent."""
    made = furnish(tmp_path / "project", tiny_model)
    bench = Workbench(made.root)
    for name, gpus in (("half", 0.5), ("two", 2), ("none", 0)):
        bench.spec(name, resources={"gpus": gpus}, metrics=["explained_variance"])
    bench.spec("nine", resources={"gpus": 9})
    cluster = start_cluster(num_cpus=2, num_gpus=2)
    try:
        where = ("--executor", "ray", "--address", cluster.address)
        refused = bench.process("plan", *where)
        assert refused.code == 2
        assert "9 GPUs: nine[seed=0]" in refused.err
        assert "2 CPUs, 2 GPUs" in refused.err
        assert bench.process("run", "half", "two", "none", *where).code == 3
        lent = {}
        for log in (bench.root / "results/logs").glob("*.log"):
            for name in ("half", "two", "none"):
                if f'"name": "{name}"' in log.with_suffix(".json").read_text():
                    lent[name] = log.read_text().splitlines()[0].partition("GPUs ")[2]
        assert lent == {"half": lent["half"], "two": "0,1", "none": "none"}
        assert lent["half"] in ("0", "1")
        assert bench.records()["none[][0]"].status == "ok"
    finally:
        cluster.shutdown()


def test_without_an_answer_the_address_is_refused_at_once(bench: Workbench) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    done = bench.process("run", "--executor", "ray", "--address", "127.0.0.1:1", "--device", "cpu")
    assert done.code == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in done.err
    assert address() != "127.0.0.1:1"
