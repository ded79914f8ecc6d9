"""The `local` executor: every group of cells in a process of its own.

A process that raises, hangs, is killed or outgrows its memory costs only itself: when a group is lost, its unfinished
cells are run again one by one, and a cell that is lost alone gets a record that says so.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from harness.execute.events import Event, Report
from harness.execute.job import Job, JobCell
from harness.execute.lost import Loss, write_lost
from harness.results import find_record, record_path
from harness.store.files import write_json

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0


@dataclass
class _Worker:
    """A running process and the job it works on."""

    job: Job
    process: subprocess.Popen[str]
    log: Path
    started: float = field(default_factory=time.time)
    stopped_for: Loss | None = None


class LocalExecutor:
    """Runs jobs in subprocesses, at most `workers` at a time."""

    def __init__(self, workers: int, logs: Path) -> None:
        self.workers, self.logs = workers, logs
        self._events: queue.Queue[Event] = queue.Queue()
        self._started = 0

    def run(self, jobs: list[Job], report: Report) -> None:
        """Runs all jobs; every cell has a record afterwards, whatever happened. Ctrl-C stops the workers."""
        waiting, running = deque(jobs), list[_Worker]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    running.append(self._start(waiting.popleft()))
                self._pass_on(report)
                for worker in [w for w in running if self._ended(w)]:
                    running.remove(worker)
                    waiting.extend(self._finish(worker, report))
            self._pass_on(report, wait=False)
        finally:
            _stop_all(running)

    def _start(self, job: Job) -> _Worker:
        self._started += 1
        stem = self.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{self._started:03}"
        write_json(stem.with_suffix(".json"), job.to_json())
        threads = str(job.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        with stem.with_suffix(".log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness.execute.worker", str(stem.with_suffix(".json"))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # a process group of its own: killed as a whole, and deaf to the terminal's Ctrl-C
            )
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        return _Worker(job, process, stem.with_suffix(".log"))

    def _read(self, output: IO[str]) -> None:
        for line in output:
            event = Event.parse(line)
            if event:
                self._events.put(event)

    def _pass_on(self, report: Report, wait: bool = True) -> None:
        deadline = time.monotonic() + (_POLL_SECONDS if wait else 0)
        while True:
            try:
                report(self._events.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                return

    def _ended(self, worker: _Worker) -> bool:
        if worker.process.poll() is not None:
            return True
        timeout, memory = worker.job.timeout, worker.job.memory
        if timeout is not None and time.time() - worker.started > timeout:
            worker.stopped_for = Loss("timeout", "Timeout", f"stopped after {timeout:g} s, its timeout")
        elif memory is not None and (used := _resident_bytes(worker.process.pid)) > memory:
            message = f"stopped at {used / 2**30:.2f} GiB of memory, its limit is {memory / 2**30:.2f} GiB"
            worker.stopped_for = Loss("failed", "OutOfMemory", message)
        if worker.stopped_for:
            _stop_all([worker])
        return worker.stopped_for is not None

    def _finish(self, worker: _Worker, report: Report) -> list[Job]:
        """Jobs to run for the cells that an ended worker left without a record."""
        code = worker.process.wait()
        _signal(worker.process, signal.SIGKILL)  # children it may have left behind
        left = [item for item in worker.job.cells if not _has_record(worker.job, item, worker.started)]
        if not left:
            return []
        loss = worker.stopped_for or _loss_of(code)
        if len(worker.job.cells) > 1:
            report(Event("note", f"a worker was lost ({loss.message}); its {len(left)} cells are run one by one"))
            return [replace(worker.job, cells=(item,)) for item in left]
        write_lost(worker.job, left[0], loss, worker.log)
        report(Event("done", left[0].cell.title, status=loss.status))
        return []


def _has_record(job: Job, item: JobCell, started: float) -> bool:
    record = find_record(job.results, item.cell, item.key)
    if record is None or record.status == "ok":
        return record is not None
    # A failed record may stem from an earlier run; this one counts when the worker wrote it.
    return record_path(job.results, item.cell, item.key).stat().st_mtime >= started


def _loss_of(code: int) -> Loss:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return Loss("failed", "Killed", f"its process was ended by {name}{hint}")
    return Loss("failed", "WorkerDied", f"its process ended with exit code {code} without writing a record")


def _resident_bytes(pid: int) -> int:
    """Memory of a process in bytes; 0 where /proc does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        _signal(worker.process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(worker.process, signal.SIGKILL)
            worker.process.wait()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
