"""What a node of a Ray cluster runs: a worker process for a job, and processes that train together with one elsewhere.

They are the same processes as everywhere, with the same limits and logs. Only lines of text come back: the node, then the
worker's events, last how cells were lost that have no record.

Ray pickles `work` and `RankHost` by the name of this module, so a node imports the module before it has the driver's
PYTHONPATH. Therefore nothing here may import jobs or experiments: they name plug-ins that only that PYTHONPATH leads to.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentbench.core.spec_model import Json
from latentbench.distributed.network import NODE_ADDRESS
from latentbench.distributed.rank_mailbox import MEETING, RankEnd, end_of, note_end, noted_end, task_file
from latentbench.distributed.worker_process import POLL_SECONDS, Limits, WorkerFailure, WorkerProcess, kill, stop
from latentbench.store.files import read_json, write_bytes, write_json

PASSED_ON = ("PYTHONPATH", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Variables of the driver that a worker gets. Keys and tokens are not among them: nodes have their own."""
_TRAINING_WORKER = "latentbench.execute.training_worker"
"""Named and not imported, as it reads jobs."""
_NODE_SECONDS = 300.0
"""How long a training waits for a node in the place of one that went."""
_STOP_SECONDS = 2.0


@dataclass(frozen=True)
class WorkOrder:
    """A job as a node gets it."""

    file: str
    """The job as JSON: a path on a disk that all nodes share."""
    limits: Limits
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set."""
    group: Any = None
    """Ray's placement group with a place for each process that trains, the job's own first; None where one node has all."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What each of them reserves, in Ray's words."""


def work(order: WorkOrder) -> Iterator[str]:
    """Carries out an order and yields what happens as JSON, line by line."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    yield json.dumps({"node": node})
    _set(order.variables)
    path = Path(order.file)
    log, host, gpus = path.with_suffix(".log"), os.uname().nodename, os.environ.get("CUDA_VISIBLE_DEVICES")
    if not path.is_file():
        hint = "the project, results and store must be on a disk that all nodes share"
        yield _line(WorkerFailure("failed", "NotShared", f"{host} does not have {path}; {hint}"))
        return
    log.write_text(f"node {host} ({node[:8]}), GPUs {gpus or 'none'}\n")
    with _running(path, log, order) as (worker, elsewhere):
        while not worker.ended():
            yield from _told(worker, elsewhere)
            elsewhere.look()
            time.sleep(POLL_SECONDS)
        yield from _told(worker, elsewhere)
        yield _line(worker.loss)


@contextmanager
def _running(file: Path, log: Path, order: WorkOrder) -> Iterator[tuple[WorkerProcess, _RanksElsewhere]]:
    worker, elsewhere = WorkerProcess(file, log, order.limits), _RanksElsewhere(order)
    try:
        yield worker, elsewhere
    finally:
        elsewhere.stop()
        stop([worker])


def _told(worker: WorkerProcess, elsewhere: _RanksElsewhere) -> Iterator[str]:
    for event in worker.new_events():
        if event.kind == "ranks":
            elsewhere.start(Path(event.text))
        else:
            yield event.line()


def _set(variables: Mapping[str, str]) -> None:
    """Sets the driver's variables, and how other nodes reach this one."""
    import ray

    os.environ.update({**variables, NODE_ADDRESS: ray.util.get_node_ip_address()})


class _RanksElsewhere:
    """The processes of one training that other places of the order's placement group run, seen from the job's node."""

    def __init__(self, order: WorkOrder) -> None:
        self._order, self._folder = order, Path()
        self._hosts: dict[int, _Host] = {}

    def start(self, folder: Path) -> None:
        """Has all processes but the first run whose tasks are in `folder`; those of an earlier training are stopped."""
        self.stop()
        self._folder = folder
        for rank in range(1, self._order.group.bundle_count):
            task = read_json(task_file(folder, rank))
            self._hosts[rank] = _Host(self._order, rank, task)

    def look(self) -> None:
        """Carries the meeting's address to them and notes how those ended that have."""
        if self._hosts and not self._folder.is_dir():  # the worker has lost interest
            self.stop()
        meeting = self._folder / MEETING
        address = meeting.read_text("utf-8") if self._hosts and meeting.is_file() else None
        for rank, host in list(self._hosts.items()):
            if (end := host.look(address)) and noted_end(self._folder, rank) is None:
                note_end(self._folder, rank, end)
                self._hosts.pop(rank).stop()

    def stop(self) -> None:
        """Ends those that run."""
        while self._hosts:
            self._hosts.popitem()[1].stop()


class _Host:
    """A `RankHost` somewhere in the cluster, asked again and again without ever waiting for it."""

    def __init__(self, order: WorkOrder, rank: int, task: Json) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(order.group, placement_group_bundle_index=rank)
        options = {**order.options, "scheduling_strategy": place, "max_restarts": 0}
        self._actor = ray.remote(RankHost).options(**options).remote()
        memory = order.limits.memory
        self._asked = self._actor.start.remote(task, Limits(order.limits.threads, memory=memory), order.variables)
        self._since, self._started = time.monotonic(), False

    def look(self, address: str | None) -> RankEnd | None:
        """How its process ended; None while it runs, or waits for a node."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        if not ray.wait([self._asked], timeout=0)[0]:
            late = not self._started and time.monotonic() - self._since > _NODE_SECONDS
            return RankEnd(1, f"found no node within {_NODE_SECONDS:g} s") if late else None
        try:
            told = ray.get(self._asked)
        except ActorUnavailableError:  # its node does not answer now: Ray goes on to find out whether it is gone
            told = None
        except RayActorError:
            return RankEnd(1, "was lost: the node it ran on is gone", node_gone=True)
        except RayTaskError as error:
            lines = str(error.cause).strip().splitlines() or [""]
            return RankEnd(1, f"was not started: {type(error.cause).__name__}: {lines[0]}")
        self._started = True
        self._asked = self._actor.look.remote(address)
        return None if told is None else RankEnd(**told)

    def stop(self) -> None:
        """Ends its process at once: whatever it writes appears whole."""
        import ray

        ray.wait([self._actor.stop.remote()], timeout=_STOP_SECONDS)
        ray.kill(self._actor)


class RankHost:
    """Runs one of the processes that train together, on the node where Ray has put this actor."""

    def __init__(self) -> None:
        self._folder, self._log = Path(), Path()
        self._process: WorkerProcess | None = None

    def start(self, task: Json, limits: Limits, variables: Mapping[str, str]) -> None:
        """Starts the process."""
        _set(variables)
        # A folder of its own, even where the disk is shared: who carries the meeting's address need not know which is so.
        self._folder = Path(tempfile.mkdtemp(prefix="lb-rank-"))
        self._log = Path(task["job"]["results"]) / "logs" / task["log"]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        file = task_file(self._folder, task["rank"])
        write_json(file, task)
        self._process = WorkerProcess(file, self._log, limits, _TRAINING_WORKER)

    def look(self, address: str | None) -> Json | None:
        """How the process ended; None while it runs. `address` is where the processes meet, once that is known."""
        assert self._process is not None
        meeting = self._folder / MEETING
        if address is not None and not meeting.exists():
            write_bytes(meeting, address.encode())
        list(self._process.new_events())  # the first process tells how far all are
        return end_of(self._process, self._log).plain() if self._process.ended() else None

    def stop(self) -> None:
        """Ends the process and tidies up."""
        if self._process is not None:
            kill([self._process])
            shutil.rmtree(self._folder, ignore_errors=True)


def _line(loss: WorkerFailure) -> str:
    return json.dumps(asdict(loss), ensure_ascii=False)
