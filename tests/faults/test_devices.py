"""Training on two devices: the same record as on one, and whatever ends a process costs only the SAEs it was training.

Gloo between two CPU processes, started by the real command line. Each imports torch anew, so most of this is slow.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

import latentbench.execute.training_launcher
from latentbench.records.record import Record
from latentbench.sae.artifact import load_training
from tests.conftest import Command, furnish
from tests.faults.test_processes import children, wait_for
from tests.support.project import Workbench, run

REPOSITORY = Path(__file__).parents[2]
RUN = ("run", "--device", "cpu", "--executor", "inline")
TOLERANCE = 1e-5
"""Of weights, relative to the largest of their tensor, and of numbers between 0 and 1. Measured: 9·10⁻⁷ and less, after up to 375 steps on two."""
LONG = {"dataset__train__tokens": 24_000, "dataset__train__repeat": True}


def project(root: Path, model: Path, **changes: Any) -> Workbench:
    """Two SAEs of one stream, trained on two devices."""
    bench = Workbench(furnish(root, model).root, (REPOSITORY,))
    bench.spec(matrix={"sae.k": [2, 4]}, metrics=["explained_variance"], **{"training__devices": 2, **changes})
    return bench


def assert_alike(bench: Workbench, other: Workbench) -> None:
    """The same keys, and weights and numbers within the tolerance."""
    records, others = bench.records(), other.records()
    assert records.keys() == others.keys()
    for name, record in records.items():
        assert record.status == others[name].status == "ok"
        assert (record.cell, record.keys) == (others[name].cell, others[name].keys)
        assert values(record) == pytest.approx(values(others[name]), rel=0, abs=TOLERANCE)
    weights, expected = bench.weights(), other.weights()
    assert weights.keys() == expected.keys()
    for key, content in weights.items():
        wanted = load(expected[key])
        for name, tensor in load(content).items():
            assert (tensor - wanted[name]).abs().max() <= TOLERANCE * wanted[name].abs().max(), name


def values(record: Record) -> dict[str, float]:
    return {f"{value.domain}/{value.id}": value.value for value in record.metrics if value.value is not None}


def devices(bench: Workbench) -> list[dict[str, int]]:
    """How many steps of each SAE were made on how many devices."""
    folders = sorted((bench.root / "results/store/objects/sae").glob("*/*"))
    return [load_training(folder)["devices"] for folder in folders]


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train, which the inline executor's own process has started."""
    return [
        pid
        for pid in children(process.pid)
        if b"latentbench.execute.training_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def alive(pids: list[int]) -> list[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

    return [pid for pid in pids if state(pid) not in "ZX"]


def all_gone(pids: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workbench:
    """The long spec, trained on one device."""
    bench = project(tmp_path_factory.mktemp("alone") / "project", tiny_model, training__devices=1, **LONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bench.root)
        assert run(list(RUN)) == 0
    return bench


@pytest.fixture
def training(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Workbench, subprocess.Popen[str], list[int]]]:
    """A run on two devices that has written a checkpoint."""
    bench = project(tmp_path / "project", tiny_model, **LONG)
    process = bench.start(*RUN)
    wait_for(lambda: list((bench.root / "results/store/partial").glob("*/state*")), process)
    found = ranks(process)
    assert len(found) == 2
    yield bench, process, found
    process.kill()
    process.communicate()
    assert all_gone(found)


def test_two_devices_write_the_record_of_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    both = project(tmp_path / "both", tiny_model)
    one = project(tmp_path / "one", tiny_model, training__devices=1)
    for bench in (both, one):
        monkeypatch.chdir(bench.root)
        assert run(list(RUN)) == 0
        assert not list((bench.root / "results/store/tmp").iterdir())
    assert_alike(both, one)
    assert (devices(both), devices(one)) == ([{"2": 16}] * 2, [{"1": 16}] * 2)
    assert {record.environment.devices for record in both.records().values()} == {2}
    assert "training 2 SAEs of mine[seed=0]: done" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_fails_the_cell_by_name_and_one_device_goes_on_from_its_checkpoint(
    training: tuple[Workbench, subprocess.Popen[str], list[int]],
    alone: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
) -> None:
    bench, process, found = training
    began = time.monotonic()
    os.kill(found[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 3, err
    assert all_gone(found, 1)
    for record in bench.records().values():
        assert record.error is not None
        assert (record.error.stage, record.error.type) == ("train", "CellFailed")
        assert f"process {rank} of 2 (cpu) was lost: its process was ended by SIGKILL" in record.error.message
        log = record.error.message.rpartition("(log: ")[2].rstrip(")")
        assert (bench.root / "results" / log).is_file()
    bench.spec(matrix={"sae.k": [2, 4]}, metrics=["explained_variance"], training__devices=1, **LONG)
    monkeypatch.chdir(bench.root)
    assert run(list(RUN)) == 0
    assert_alike(bench, alone)
    assert all(steps["1"] > 0 and steps["2"] > 0 for steps in devices(bench))


@pytest.mark.slow
def test_training_that_goes_on_with_as_many_devices_is_the_same_bit_for_bit(
    training: tuple[Workbench, subprocess.Popen[str], list[int]], alone: Workbench, tmp_path: Path, tiny_model: Path
) -> None:
    bench, process, found = training
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert all_gone(found, 1)
    whole = project(tmp_path / "whole", tiny_model, **LONG)
    for one in (bench, whole):
        done = one.process(*RUN)
        assert done.code == 0, done.err
    assert bench.weights() == whole.weights()
    assert_alike(whole, alone)


@pytest.mark.slow
def test_processes_end_when_the_worker_is_killed(
    training: tuple[Workbench, subprocess.Popen[str], list[int]],
) -> None:
    _, process, found = training
    process.kill()
    assert all_gone(found)


@pytest.mark.slow
def test_a_process_that_hangs_is_named(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process answers nobody; the other one gives it up after its patience."""
    bench = project(tmp_path / "project", tiny_model, **LONG)
    monkeypatch.setattr(latentbench.execute.training_launcher, "PATIENCE_SECONDS", 8.0)
    monkeypatch.setattr(
        latentbench.execute.training_launcher, "_watch", stopping(latentbench.execute.training_launcher._watch)
    )
    monkeypatch.chdir(bench.root)
    assert run(list(RUN)) == 3
    messages = [record.error.message for record in bench.records().values() if record.error]
    assert len(messages) == 2
    assert all("process 1 of 2 (cpu) did not answer the others any more (log: logs/" in message for message in messages)


def stopping(watch: Callable[..., None]) -> Callable[..., None]:
    """Stops the second process once the first one tells of progress."""

    def watched(started: list[Any], progress: Callable[..., None]) -> None:
        def told(*counts: float, **more: Any) -> None:
            os.kill(started[1].process.process.pid, signal.SIGSTOP)
            progress(*counts, **more)

        watch(started, told)

    return watched


def test_devices_that_are_not_there_are_refused_before_anything_runs(bench: Workbench, command: Command) -> None:
    bench.spec(training={"batch": 4096, "devices": 100})
    done = command("run", "--device", "cpu", "--executor", "inline")
    assert done.code == 2
    assert f"training.devices: 100 is more than the {os.cpu_count()} processor cores of this machine" in done.err
    assert not bench.records()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sae": {"variant": "sae_lens_standard", "width": 32, "l1": 1.0}},
            "'sae_lens_standard' can be trained on one",
        ),
        ({"training__batch": 63}, "2 devices share a batch of at least 64 tokens, not 63"),
        (
            {"training__buffer": 64, "dataset__train__context": 64},
            "a buffer of 64 tokens holds fewer than 2 rows of 64",
        ),
        ({"resources__gpus": 0.5}, "training on 2 devices takes a whole accelerator for each"),
    ],
)
def test_what_cannot_be_trained_on_several_devices_is_refused(
    bench: Workbench, command: Command, changes: dict[str, Any], message: str
) -> None:
    bench.spec(**{"training__devices": 2, **changes})
    done = command("validate", "mine")
    assert done.code == 2
    assert message in " ".join((done.out + done.err).split())
