"""Workers of the `local` executor: whatever ends one costs the cell it worked on, and the next run completes it bit for bit.

Every worker imports torch anew, so most of this is slow; `test_kill.py` does the like with processes that are forked.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import furnish
from tests.support.plugin import Plugin, faulty_sae, install
from tests.support.project import Workbench, numbers

RUN = ("run", "--device", "cpu", "--workers", "1")
MATRIX = {"sae.k": [2, 4]}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(autouse=True)
def _mended(plugin: Plugin) -> Any:
    yield
    plugin.mend()


def faulty_bench(root: Path, model: Path, plugin: Plugin, **changes: Any) -> Workbench:
    made = furnish(root, model)
    bench = Workbench(made.root, (plugin.folder,))
    bench.spec(sae=faulty_sae(4), matrix=MATRIX, metrics=["explained_variance"], **changes)
    return bench


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, plugin: Plugin) -> Workbench:
    return faulty_bench(tmp_path / "project", tiny_model, plugin)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, plugin: Plugin) -> Workbench:
    """The same spec without a fault."""
    bench = faulty_bench(tmp_path_factory.mktemp("undisturbed") / "project", tiny_model, plugin)
    done = bench.process(*RUN)
    assert done.code == 0, done.err
    return bench


def results(bench: Workbench) -> dict[str, Any]:
    """Records without times, host and cost."""
    return {name: numbers(record) for name, record in bench.records().items()}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


LOSSES = {
    "kill": ("failed", "worker", "Killed", "SIGKILL"),
    "exit": ("failed", "worker", "WorkerDied", "exit code 7"),
    "raise": ("failed", "train", "RuntimeError", "a fault on purpose"),
}


@pytest.mark.parametrize("fault", ["kill", "exit", "raise"])
@pytest.mark.slow
def test_a_cell_that_breaks_costs_only_itself_and_the_next_run_completes_it(
    bench: Workbench, plugin: Plugin, undisturbed: Workbench, fault: str
) -> None:
    plugin.break_with(fault, k=4)
    done = bench.process(*RUN)
    assert done.code == 3, done.err
    sound, broken = bench.records()["mine[sae.k=2][0]"], bench.records()["mine[sae.k=4][0]"]
    assert (sound.status, broken.status) == ("ok", LOSSES[fault][0])
    assert broken.error is not None
    assert (broken.error.stage, broken.error.type) == LOSSES[fault][1:3]
    assert LOSSES[fault][3] in broken.error.message
    assert "no numbers mine[sae.k=4][seed=0]" in " ".join(done.err.split())
    if broken.error.stage == "worker":
        assert broken.error.log is not None
        assert (bench.root / "results" / broken.error.log).is_file()
        assert f"(log: results/{broken.error.log})" in done.err.replace("\n", "")
    plugin.mend()
    done = bench.process(*RUN, "--json")
    assert done.code == 0, done.err
    assert [cell["reused"] for cell in json.loads(done.out)["cells"]] == [True, False]
    assert bench.records()["mine[sae.k=2][0]"] == sound
    assert results(bench) == results(undisturbed)
    assert bench.weights() == undisturbed.weights()


@pytest.mark.parametrize(
    ("fault", "limits", "expected"),
    [
        ("hang", {"resources__timeout": "12s"}, ("timeout", "Timeout", "stopped after 12 s, its timeout")),
        ("memory", {"resources__memory": "2GiB"}, ("failed", "OutOfMemory", "its limit is 2.00 GiB")),
    ],
)
@pytest.mark.slow
def test_a_cell_beyond_its_limits_is_stopped(
    bench: Workbench, plugin: Plugin, fault: str, limits: dict[str, str], expected: tuple[str, ...]
) -> None:
    bench.spec(sae=faulty_sae(4), matrix=MATRIX, metrics=["explained_variance"], **limits)
    plugin.break_with(fault, k=4)
    done = bench.process(*RUN)
    assert done.code == 3
    assert bench.records()["mine[sae.k=2][0]"].status == "ok"
    broken = bench.records()["mine[sae.k=4][0]"]
    assert broken.error is not None
    assert (broken.status, broken.error.type) == expected[:2]
    assert expected[2] in broken.error.message


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_next_run_continues(
    bench: Workbench, plugin: Plugin, undisturbed: Workbench
) -> None:
    plugin.break_with("hang", k=4)
    process = bench.start(*RUN)
    wait_for(lambda: plugin.reached, process)
    workers = children(process.pid)
    assert workers
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is kept" in err
    assert "Traceback" not in err
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert bench.process("store", "verify").code == 0
    assert bench.records() == {}
    plugin.mend()
    assert bench.process(*RUN).code == 0
    assert results(bench) == results(undisturbed)
    assert bench.weights() == undisturbed.weights()


def killed_at_random(bench: Workbench, times: int, seed: int) -> int:
    """Kills the worker `times` times with SIGKILL at random moments, then lets it finish. How often it was training."""
    generator, interrupted = random.Random(seed), 0
    partial = bench.root / "results/store/partial"
    for _ in range(times):
        process = bench.start("run", "--device", "cpu", "--executor", "inline")
        before = {path: path.stat().st_mtime_ns for path in partial.glob("*/*")}
        wait_for(
            lambda before=before: [p for p in partial.glob("*/*") if before.get(p) != p.stat().st_mtime_ns],  # type: ignore[misc]
            process,
        )
        time.sleep(generator.uniform(0, 0.05))
        interrupted += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    return interrupted


@pytest.mark.slow
@pytest.mark.parametrize("times", [3, 10])
def test_kill_9_in_mid_training_changes_no_bit(tmp_path: Path, tiny_model: Path, plugin: Plugin, times: int) -> None:
    long = {"dataset__train__tokens": 40_000, "dataset__train__repeat": True}
    whole = faulty_bench(tmp_path / "whole", tiny_model, plugin, **long)
    torn = faulty_bench(tmp_path / "torn", tiny_model, plugin, **long)
    assert whole.process("run", "--device", "cpu", "--executor", "inline").code == 0
    assert killed_at_random(torn, times, seed=times) == times
    assert torn.process("store", "verify").code == 0
    assert torn.process("run", "--device", "cpu", "--executor", "inline").code == 0
    assert torn.weights() == whole.weights()
    assert results(torn) == results(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_put_aside_and_training_starts_anew(
    bench: Workbench, plugin: Plugin, undisturbed: Workbench
) -> None:
    plugin.break_with("kill", k=4, step=12)
    assert bench.process(*RUN).code == 3
    (state,) = (bench.root / "results/store/partial").glob("*/*")
    content = bytearray(state.read_bytes())
    content[-40] ^= 1
    state.write_bytes(content)
    plugin.mend()
    assert bench.process(*RUN).code == 0
    assert bench.weights() == undisturbed.weights()
    assert list((bench.root / "results/store/quarantine").iterdir())


@pytest.mark.parametrize("pause", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_ctrl_c_twice_ends_everything(bench: Workbench, plugin: Plugin, pause: float) -> None:
    plugin.break_with("deaf", k=4)
    process = bench.start(*RUN)
    wait_for(lambda: plugin.reached, process)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert workers
    # A second Ctrl-C may come before the workers are told; one that is left alone ends by itself within seconds.
    while time.monotonic() - began < 30 and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert bench.process("store", "verify").code == 0
