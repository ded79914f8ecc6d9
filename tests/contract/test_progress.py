"""Every executor tells how far the work in its cells is: while it goes on, at its end, and to those who watch from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from latentbench.cli import progress
from latentbench.cli.work_lines import plain
from latentbench.core.progress import WorkProgress
from latentbench.distributed import progress_meter
from latentbench.distributed.worker_process import Event, Limits, WorkerProcess
from latentbench.execute import progress_board
from latentbench.execute.progress_board import BoardReader, ProgressBoard
from latentbench.plan.plan import Plan, make_plan
from latentbench.spec.project import load_specs
from latentbench.store.leases import Owner
from latentbench.store.store import Store
from tests.conftest import Command
from tests.support.project import Workbench, random_words, write_jsonl
from tests.support.ray import NEEDS_RAY, placed

EXECUTORS = ("inline", "local", pytest.param("ray", marks=NEEDS_RAY))


def work(**changes: Any) -> WorkProgress:
    kept: dict[str, Any] = {"work": "w1", "what": "work", "done": 1.0, "total": 4.0, "unit": "steps"}
    return WorkProgress(**{**kept, **changes})


def planned(bench: Workbench) -> Plan:
    project = bench.project
    return make_plan(load_specs(project, []), Store(project.store), project.results, project.roots)


def much(bench: Workbench, tokens: int) -> dict[str, int]:
    """So many tokens to train on."""
    write_jsonl(bench.root / "data/train.jsonl", random_words(tokens // 16 + 1))
    return {"dataset__train__tokens": tokens}


@pytest.fixture
def posted(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> list[WorkProgress]:
    """What somebody who watches from outside sees of a run, each time the run has written it down."""
    seen: list[WorkProgress] = []
    write = ProgressBoard._write

    def written(board: ProgressBoard) -> None:
        write(board)
        seen.extend(BoardReader(bench.project.results).look())

    monkeypatch.setattr(ProgressBoard, "_write", written)
    monkeypatch.setattr(progress_board, "_SECONDS_BETWEEN", 0.02)
    return seen


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_run_tells_of_every_work_and_who_watches_sees_the_same(
    bench: Workbench, command: Command, posted: list[WorkProgress], executor: str
) -> None:
    bench.spec(matrix={"sae.k": [2, 4]}, **much(bench, 3_000))
    keys = {item.key[:8] for item in planned(bench).cells}
    done = command("run", *placed(executor), "--device", "cpu", "--workers", "1")
    assert done.code == 0
    *_, trained = re.findall(r"training 2 SAEs of mine\[seed=0\]: (.*)", done.err)
    assert re.fullmatch(r"done in \d+ (s|min), [\d,.]+ tokens/s, loss 0\.\d+–0\.\d+", trained)
    *_, measured = re.findall(r"measuring 2 SAEs of mine\[seed=0\] on lab: (.*)", done.err)
    assert re.fullmatch(r"done in \d+ (s|min), [\d,.]+ tokens/s", measured)
    assert "\x1b" not in done.err
    training = [message for message in posted if message.what == "training 2 SAEs of mine[seed=0]"]
    assert training, "seen from outside while it went on"
    assert {message.cells for message in training} == {training[0].cells}
    assert set(training[0].cells) == keys
    shares = [message.share for message in training]
    assert shares == sorted(shares)
    assert all(message.unit == "tokens" for message in training)
    assert BoardReader(bench.project.results).look() == []
    assert not list((bench.project.results / "logs").glob("*progress*")), "nothing is left of it"


@pytest.mark.slow
def test_devices_that_train_together_tell_of_it_as_one(bench: Workbench, command: Command) -> None:
    bench.spec(**much(bench, 20_000), training={"batch": 256, "buffer": 2048, "devices": 2})
    done = command("run", "--executor", "inline", "--device", "cpu")
    assert done.code == 0
    *_, trained = re.findall(r"training 1 SAE of mine\[seed=0\]: (.*)", done.err)
    assert re.fullmatch(r"done in \d+ (s|min), [\d,.]+ tokens/s, loss 0\.\d+", trained)


def test_a_training_that_goes_on_later_counts_what_was_done_into_the_share_alone(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentbench.execute.training_stage import TrainingRunner
    from latentbench.sae.trainer import NativeTrainer

    # Not stored: whether `auto` stores hidden states depends on the clock, and making them is another work with its own count.
    bench.spec(**much(bench, 4096), metrics=["explained_variance"], resources__cache="never")
    told: list[tuple[float, float, float]] = []
    step, make = NativeTrainer.step, TrainingRunner.make

    def listening(runner: TrainingRunner, wanted: Any, progress: Any) -> Any:
        def heard(done: float, total: float, unit: str, *, before: float, **more: Any) -> None:
            told.append((done, total, before))

        return make(runner, wanted, heard)

    def dying(trainer: NativeTrainer, x: Any) -> None:
        if trainer.next_step == 40:
            raise MemoryError
        step(trainer, x)

    monkeypatch.setattr(TrainingRunner, "make", listening)
    with monkeypatch.context() as patch:
        patch.setattr(NativeTrainer, "step", dying)
        assert command("run", "--executor", "inline", "--device", "cpu").code == 3
    assert told[0][0] == 0
    assert {before for _, _, before in told} == {0}
    first, total = told[-1][0], told[-1][1]
    told.clear()
    assert command("run", "--executor", "inline", "--device", "cpu").code == 0
    began = next(before for _, _, before in told if before)
    assert 0 < began <= first, "where the last checkpoint was"
    assert told[-1] == (total, total, began)
    resumed = [done - before for done, _, before in told if before]
    assert resumed[0] == 0
    assert resumed == sorted(resumed)


# -- readers that are slow, workers that are lost --------------------------------------------------------------------------

TALKER = """
import sys
from latentbench.core.progress import WorkProgress
from latentbench.distributed.worker_process import Event
from latentbench.execute.worker import serve

def work(report):
    for number in range(5000):
        report(Event("progress", progress=WorkProgress("w", "x" * 200, number, 5000, "steps")))
    open(sys.argv[1] + ".done", "w").close()
    {last}

sys.exit(serve(work))
"""


def talker(folder: Path, monkeypatch: pytest.MonkeyPatch, last: str = "") -> Path:
    """A module `talker` that tells of more than a pipe holds."""
    (folder / "talker.py").write_text(TALKER.replace("{last}", last))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder / "job"


def until(seen: Any, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(seen())


def test_a_reader_that_stands_still_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-Z: nobody takes anything out of the pipe, which holds 64 KiB of some 1.5 MB."""
    job = talker(tmp_path, monkeypatch)
    monkeypatch.setattr(WorkerProcess, "_read", lambda self, output: None)
    worker = WorkerProcess(job, tmp_path / "log", Limits(1), "talker")
    assert until(job.with_suffix(".done").exists), (tmp_path / "log").read_text()
    assert until(worker.ended)
    assert worker.process.returncode == 0


def test_work_of_a_worker_that_was_lost_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = talker(tmp_path, monkeypatch, "import time; time.sleep(600)")
    worker = WorkerProcess(job, tmp_path / "log", Limits(1), "talker")
    assert until(job.with_suffix(".done").exists), (tmp_path / "log").read_text()
    worker.signal(signal.SIGKILL)
    assert until(worker.ended)
    events = list(worker.new_events())
    assert events[-1].progress is not None
    assert [event.progress.end for event in events if event.progress and event.progress.end] == ["stopped"]


# -- the file beside the results -------------------------------------------------------------------------------------------


def board_file(results: Path, owner: Owner, *works: WorkProgress, count: int = 1) -> Path:
    file = results / "logs" / f"progress-{owner.token}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"owner": asdict(owner), "count": count, "work": [asdict(w) for w in works]}))
    return file


def elsewhere(**changes: Any) -> Owner:
    return Owner(**{**asdict(Owner.here()), "machine": "another", **changes})


def test_who_is_known_to_be_gone_is_not_at_work(tmp_path: Path) -> None:
    board_file(tmp_path, Owner(**{**asdict(Owner.here()), "started": "0"}), work(what="dead"))
    board_file(tmp_path, Owner.here(), work(what="alive"))
    assert [message.what for message in BoardReader(tmp_path).look()] == ["alive"]


def test_another_machine_counts_as_gone_when_its_count_has_stood_still(tmp_path: Path) -> None:
    now, owner = 0.0, elsewhere()
    reader = BoardReader(tmp_path, clock=lambda: now)
    board_file(tmp_path, owner, work())
    assert reader.look() == [work()]
    now = 60.0
    assert reader.look() == [work()]
    board_file(tmp_path, owner, work(), count=2)
    now = 120.0
    assert reader.look() == [work()], "it lives"
    now = 300.0
    assert reader.look() == []


def test_a_new_run_sweeps_what_dead_ones_left(tmp_path: Path) -> None:
    dead = board_file(tmp_path, Owner(**{**asdict(Owner.here()), "started": "0"}), work())
    alive = board_file(tmp_path, elsewhere(), work())
    with ProgressBoard(tmp_path):
        pass
    assert (dead.exists(), alive.exists()) == (False, True)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"[" * 9000, b"\xff", b'{"owner": {}, "count": 1, "work": []}', b" " * (2 << 20)]
)
def test_files_that_no_run_wrote_say_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/progress-1.json").write_bytes(content)
    (tmp_path / "logs/progress-2.json").symlink_to("/dev/zero")
    (tmp_path / "logs/progress-3.json").mkdir()
    os.mkfifo(tmp_path / "logs/progress-4.json")
    assert BoardReader(tmp_path).look() == []
    with ProgressBoard(tmp_path):
        pass


def test_work_that_is_no_message_of_ours_is_not_shown(tmp_path: Path) -> None:
    file = board_file(tmp_path, Owner.here(), work())
    content = json.loads(file.read_text())
    content["work"].append({**content["work"][0], "done": "\x1b[2J"})
    file.write_text(json.dumps(content))
    assert BoardReader(tmp_path).look() == []


def test_a_disk_that_refuses_costs_only_what_could_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_board, "_SECONDS_BETWEEN", 0.01)
    (tmp_path / "logs").write_text("no folder")
    heard: list[Event] = []
    with ProgressBoard(tmp_path) as board:
        report = board.listening(heard.append)
        for number in range(3):
            report(Event("progress", progress=work(done=number)))
            time.sleep(0.05)
    assert len(heard) == 3


def test_nothing_is_written_of_a_run_that_is_done_at_once(tmp_path: Path) -> None:
    with ProgressBoard(tmp_path) as board:
        board.listening(lambda event: None)(Event("progress", progress=work()))
    assert list(tmp_path.iterdir()) == []


def test_watch_shows_what_runs_are_at_for_its_own_cells(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.spec(metrics=["explained_variance"])
    made = planned(bench)
    ours = work(what="training", left=40.0, cells=(made.cells[0].key[: progress_meter.KEY_DIGITS],))
    board_file(bench.project.results, Owner.here(), ours, work(work="w2", what="another spec's", cells=("00000000",)))
    told: list[str] = []

    def enough(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "sleep", enough)
    monkeypatch.setattr(progress, "say", told.append)
    with pytest.raises(KeyboardInterrupt):
        progress.follow(made, bench.project, 1.0)
    assert [line[9:] for line in told][1:] == [plain(ours)]
    assert "training: 25 % (1 of 4 steps), about 40 s left" in told[1]
