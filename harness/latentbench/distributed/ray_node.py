"""What a node of a Ray cluster runs: a worker process for a job, and processes that train together with one elsewhere.

They are the same processes as everywhere, with the same limits and logs. Only lines of text come back: the node, then the
worker's events, last how cells were lost that have no record.

Ray pickles `work` and `RankHost` by the name of this module, so a node imports the module before it has the driver's
PYTHONPATH. Therefore nothing here may import jobs or experiments: they name plug-ins that only that PYTHONPATH leads to.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentbench.core.errors import LatentbenchError, NotAvailable
from latentbench.core.spec_model import Json
from latentbench.distributed.network import NODE_ADDRESS
from latentbench.distributed.node_copy import Apart, NodeCopy, node_copy
from latentbench.distributed.rank_mailbox import MEETING, RankEnd, end_of, note_end, noted_end, task_file
from latentbench.distributed.worker_process import POLL_SECONDS, Limits, WorkerFailure, WorkerProcess, kill, stop
from latentbench.store.depot import Seal
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
    """The job as JSON: its path on the machine that the run was started on."""
    limits: Limits
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set."""
    group: Any = None
    """Ray's placement group with a place for each process that trains, the job's own first; None where one node has all."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What each of them reserves, in Ray's words."""
    job: Json = None
    """The job itself, where nodes do not see the file."""
    apart: Apart | None = None
    """How they work then; None where all share a disk."""
    home: Any = None
    """Ray's handle of the depot there (`RayDepot`)."""


class RayDepot:
    """A depot on another node, an actor of `Depot`: what it gives and takes travels through Ray's object store."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def listing(self, name: str) -> dict[str, Seal]:
        """See `DepotLike`."""
        return dict(self._ask("listing", name))

    def read(self, name: str, file: str, start: int) -> bytes:
        """See `DepotLike`."""
        return bytes(self._ask("read", name, file, start))

    def begin(self, name: str) -> str:
        """See `DepotLike`."""
        return str(self._ask("begin", name))

    def write(self, draft: str, file: str, content: bytes) -> None:
        """See `DepotLike`."""
        self._ask("write", draft, file, content)

    def accept(self, name: str, draft: str, seals: dict[str, Seal]) -> None:
        """See `DepotLike`."""
        self._ask("accept", name, draft, seals)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).remote(*arguments))


@dataclass(frozen=True)
class _Place:
    """A job's files on this node."""

    file: Path
    copy: NodeCopy | None = None

    @property
    def log(self) -> Path:
        return self.file.with_suffix(".log")

    def bring_back(self, at_once: bool = False) -> None:
        if self.copy is not None:
            self.copy.bring_back(at_once)


def work(order: WorkOrder) -> Iterator[str]:
    """Carries out an order and yields what happens as JSON, line by line."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    yield json.dumps({"node": node})
    _set(order.variables)
    host, gpus = os.uname().nodename, os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        with _place(order) as place:
            place.log.write_text(f"node {host} ({node[:8]}), GPUs {gpus or 'none'}\n")
            loss = yield from _watched(place, order)
    except LatentbenchError as error:
        loss = WorkerFailure("failed", type(error).__name__, str(error))
    yield json.dumps(asdict(loss), ensure_ascii=False)


@contextmanager
def _place(order: WorkOrder) -> Iterator[_Place]:
    """The job's file on this node, with all that the job reads. Raises NotAvailable where it is not here."""
    if order.apart is None:
        if not Path(order.file).is_file():
            raise NotAvailable(
                f"{os.uname().nodename} does not have {order.file}: the project, results and store must be on a disk that "
                "all nodes share, or give --scratch"
            )
        yield _Place(Path(order.file))
        return
    with node_copy(order.apart, RayDepot(order.home)) as copy:
        file = copy.results / "logs" / Path(order.file).name
        write_json(file, copy.localised(order.job))
        yield _Place(file, copy)


def _watched(place: _Place, order: WorkOrder) -> Generator[str, None, WorkerFailure]:
    """Runs the job's worker to its end; gives how cells were lost that have no record."""
    worker, elsewhere = WorkerProcess(place.file, place.log, order.limits), _RanksElsewhere(order)
    try:
        while not worker.ended():
            yield from _told(worker, elsewhere, place)
            elsewhere.look()
            place.bring_back()
            time.sleep(POLL_SECONDS)
        yield from _told(worker, elsewhere, place)
        return worker.loss
    finally:
        elsewhere.stop()
        stop([worker])


def _told(worker: WorkerProcess, elsewhere: _RanksElsewhere, place: _Place) -> Iterator[str]:
    for event in worker.new_events():
        if event.kind == "ranks":
            place.bring_back(at_once=True)  # others read what was made for this training: tokens, base SAEs
            elsewhere.start(Path(event.text))
        else:
            yield event.line()


def _set(variables: Mapping[str, str]) -> None:
    """Sets the driver's variables, and how other nodes reach this one."""
    import ray

    address: Any = ray.util.get_node_ip_address  # untyped in Ray
    os.environ.update({**variables, NODE_ADDRESS: address()})


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
        actor: Any = ray.remote(RankHost)
        self._actor = actor.options(**options).remote()
        memory = order.limits.memory
        limits = Limits(order.limits.threads, memory=memory)
        self._asked = self._actor.start.remote(task, limits, order.variables, order.apart, order.home)
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
        self._folder, self._log, self._stack = Path(), Path(), ExitStack()
        self._process: WorkerProcess | None = None

    def start(self, task: Json, limits: Limits, variables: Mapping[str, str], apart: Apart | None, home: Any) -> None:
        """Starts the process."""
        _set(variables)
        if apart is not None:
            copy = self._stack.enter_context(node_copy(apart, RayDepot(home)))
            task = {**task, "job": copy.localised(task["job"])}
        # A folder of its own, even where the disk is shared: who carries the meeting's address need not know which is so.
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lb-rank-")))
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
        self._stack.close()
