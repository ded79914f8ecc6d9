"""The `ray` executor: every group of cells is a task of a Ray cluster, which finds the node and leases its GPUs.

Before anything is run, jobs are fitted to the nodes there are, and cells that none of them can ever run are refused:
Ray would let them wait for ever. Ray only places. The task runs the same worker process as `local`
(`harness/latentbench/distributed/ray_node.py`), and what a lost worker means is decided here and in
`harness/latentbench/execute/executors.py`: Ray itself never runs anything twice.

A job whose SAEs are trained on more devices than a node has reserves a place for each in the cluster; its task stands in
the first of them and has the other processes run in theirs.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentbench.core.errors import InvalidInput
from latentbench.distributed.progress_meter import OpenWork
from latentbench.distributed.ray_cluster import (
    ClusterNode,
    ResourceRequest,
    can_run,
    can_spread,
    given_back,
    nodes,
    reserved,
)
from latentbench.distributed.ray_node import PASSED_ON, WorkOrder, work
from latentbench.distributed.worker_process import GRACE_SECONDS, POLL_SECONDS, Event, EventHandler, WorkerFailure
from latentbench.execute.executors import SubmittedJob, submit
from latentbench.execute.job import Job
from latentbench.execute.ray_home import Home

_LOOK_SECONDS = 3.0
"""How often the nodes are looked at while jobs wait for one."""
_NAMED = 20
"""Cells that an error names."""


def request_of(job: Job) -> ResourceRequest:
    """What a job reserves on its node: its threads and memory for each process that trains, and the GPUs its cells ask
    for.

    On GPUs whose number or part no cell says, one for each device that trains.
    """
    gpus, memory = 0 if job.device == "cpu" else job.gpus or job.devices, job.memory_asked
    return ResourceRequest(job.threads * job.devices, gpus, memory and memory * job.devices)


def part_of(job: Job) -> ResourceRequest:
    """What a job that is spread over nodes reserves for each process that trains."""
    gpus = 0 if job.device == "cpu" else max(1, int(job.gpus) // job.devices)
    return ResourceRequest(job.threads, gpus, job.memory_asked)


def _somewhere(job: Job, found: list[ClusterNode]) -> bool:
    """Whether the nodes could run it when idle: one of them, or several together where it is trained on several devices."""
    if job.spread:
        return can_spread(part_of(job), job.devices, found)
    return can_run(request_of(job), found)


def _placed(job: Job, found: list[ClusterNode]) -> Job | None:
    """The job on one node where one has room for it, else spread over several; None where that would not do either."""
    ways = [job, *([replace(job, spread=True)] if job.devices > 1 else [])]
    return next((way for way in ways if _somewhere(way, found)), None)


def fitted(jobs: Iterable[Job], found: list[ClusterNode]) -> list[Job]:
    """The jobs as they are placed: threads nobody asked for are no more than the largest node has, what is trained on more
    devices than a node has is spread over several, and a group that together asks for more is taken apart.

    Raises InvalidInput that names the cells whose request no node can ever satisfy, and what the nodes have.
    """
    # Without this, a driver with more cores than any node would ask for what nobody has.
    largest = max((int(node.cpus) for node in found), default=1)
    thin = [job if job.states_threads else _thinned(job, largest) for job in jobs]
    _refuse([cell for job in thin for cell in job.single_cells()], found)
    made = list[Job]()
    for job in thin:
        whole = _placed(job, found)
        parts = [whole] if whole else [_placed(cell, found) for cell in job.single_cells()]
        made += [part for part in parts if part]  # none is left out: `_refuse` has seen that each can be placed
    return made


def _thinned(job: Job, cpus: int) -> Job:
    return replace(job, threads=max(1, min(job.threads, cpus // job.devices)))


def _refuse(cells: Iterable[Job], found: list[ClusterNode]) -> None:
    """Raises InvalidInput when no node can ever run one of these jobs of one cell each."""
    refused: dict[ResourceRequest, list[str]] = {}
    for job in cells:
        if _placed(job, found) is None:
            refused.setdefault(request_of(job), []).append(job.cells[0].cell.title)
    if not refused:
        return
    lines = [f"{request}: {_some(titles)}" for request, titles in refused.items()]
    have = "; ".join(sorted({str(node) for node in found})) or "none is alive"
    raise InvalidInput(
        "no node of the Ray cluster can ever run cells that ask for\n  "
        + "\n  ".join(lines)
        + f"\nthe nodes have: {have}\nlower `resources:` in the spec (several GPUs are whole ones) or add a node"
    )


def _some(titles: list[str]) -> str:
    more = f" and {len(titles) - _NAMED} more" if len(titles) > _NAMED else ""
    return ", ".join(titles[:_NAMED]) + more


@dataclass(eq=False)
class _Task:
    """A job that was handed to Ray."""

    submitted: SubmittedJob
    stream: Any
    """Ray's generator of references to the lines that `work` yields."""
    group: Any = None
    """Its placement group, where it is spread over nodes."""
    node: str | None = None
    """Where it runs; None while it waits for a node."""
    loss: WorkerFailure | None = None
    of_node: bool = False
    """Whether the machine went, which says nothing against the cells."""
    open: OpenWork = field(default_factory=OpenWork)


class RayExecutor:
    """Runs jobs on the cluster this process has joined, at most `workers` at a time; None leaves that to the
    cluster."""

    def __init__(self, workers: int | None, logs: Path, scratch: str | None = None) -> None:
        """`scratch`: folder on every node's own disk, for clusters whose nodes share none (`Apart`)."""
        self.workers, self.logs, self.scratch = workers, logs, scratch
        self._home: Home | None = None
        self._moved: set[str] = set()
        """Keys of cells that were run again elsewhere, which is done once: a cell may be what brings nodes down."""
        self._looked = time.monotonic()

    def run(self, jobs: list[Job], report: EventHandler) -> None:
        """Runs all jobs; every cell has a record afterwards, whatever happened. Ctrl-C stops the workers."""
        waiting, running = deque(jobs), list[_Task]()
        if self.scratch is not None and jobs:
            self._home = Home(self.scratch, jobs)
        try:
            while waiting or running:
                while waiting and len(running) < (self.workers or len(running) + 1):
                    running.append(self._submit(waiting.popleft()))
                for task in [task for task in self._ready(running) if _advance(task, report)]:
                    running.remove(task)
                    waiting.extend(self._settle(task, report))
                self._drop_stranded(running)
        finally:
            _cancel(running)

    def _submit(self, job: Job) -> _Task:
        """Hands a job to Ray, which is not to retry it: only the records tell what is left to do."""
        import ray

        submitted = submit(job, self.logs)
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        remote = ray.remote(max_retries=0, num_returns="streaming")(work)
        group = reserved(part_of(job), job.devices) if job.spread else None
        options = (part_of if job.spread else request_of)(job).options()
        home = self._home.order(job) if self._home else {}
        variables |= self._home.variables(job) if self._home else {}
        order = WorkOrder(str(submitted.file), job.limits, variables, group, options, **home)
        stream = remote.options(**options, **_in_first(group)).remote(order)
        return _Task(submitted, stream, group)

    def _ready(self, running: list[_Task]) -> list[_Task]:
        """Tasks with something to tell, after a while of waiting for one."""
        import ray

        streams = [task.stream for task in running]
        ray.wait(streams, num_returns=1, timeout=POLL_SECONDS)
        ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
        return [task for task in running if task.stream in ready]

    def _settle(self, task: _Task, report: EventHandler) -> list[Job]:
        """The jobs to run in place of one that ended. A cell that a node took down with it is tried once more."""
        if task.group is not None:
            given_back(task.group)
        job, loss = (
            task.submitted.job,
            task.loss or WorkerFailure("failed", "WorkerDied", "its task ended without a word"),
        )
        moved = {item.key for item in job.cells}
        if task.of_node and not moved & self._moved and task.submitted.left() == list(job.cells):
            self._moved |= moved
            report(Event("note", f"{job.cells[0].cell.title} is run again elsewhere: {loss.message}"))
            return [job]
        return task.submitted.settle(loss, report)

    def _drop_stranded(self, running: list[_Task]) -> None:
        """Gives up tasks that wait for nodes that are gone: Ray would let them wait for ever."""
        if all(task.node for task in running) or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        import ray

        self._looked, alive = time.monotonic(), nodes()
        for task in running:
            job = task.submitted.job
            if task.node is None and task.loss is None and not _somewhere(job, alive):
                task.loss = WorkerFailure("failed", "NoNode", f"no node is left that has {request_of(job)}")
                ray.cancel(task.stream)


def _in_first(group: Any) -> dict[str, Any]:
    """Ray's options for a task in the first place of a placement group."""
    if group is None:
        return {}
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)}


def _advance(task: _Task, report: EventHandler) -> bool:
    """Takes in everything a task has to tell now; whether it has ended."""
    import ray
    from ray.exceptions import RayError

    # Asked before each `next`, which would block until the worker says something.
    while ray.wait([task.stream], timeout=0)[0]:
        try:
            _take(task, json.loads(ray.get(next(task.stream))), report)
        except StopIteration:
            for message in task.open.end():  # what it was at when it was lost
                report(Event("progress", progress=message))
            return True
        except RayError as error:
            task.of_node = _node_is_gone(task.node, error)
            task.loss = task.loss or _loss_of(task, error)
    return False


def _take(task: _Task, told: Any, report: EventHandler) -> None:
    if "node" in told:
        task.node = told["node"]
    elif "kind" in told:
        event = Event.of(told)
        if event.progress:
            task.open.see(event.progress)
        report(event)
    else:
        task.loss = WorkerFailure(**told)


def _node_is_gone(node: str | None, error: Exception) -> bool:
    """Whether a task was lost with its machine; Ray may report only that the task's process is no more."""
    from ray.exceptions import NodeDiedError, WorkerCrashedError

    if not isinstance(error, NodeDiedError | WorkerCrashedError):
        return False
    return isinstance(error, NodeDiedError) or node not in [found.id for found in nodes()]


def _loss_of(task: _Task, error: Exception) -> WorkerFailure:
    from ray.exceptions import RayTaskError

    if task.of_node:
        return WorkerFailure("failed", "NodeDied", "the node it ran on is gone")
    if isinstance(error, RayTaskError):
        error = error.cause
    lines = str(error).strip().splitlines() or [""]
    return WorkerFailure("failed", type(error).__name__, f"Ray could not run it: {lines[0]}")


def _cancel(tasks: Iterable[_Task]) -> None:
    """Ends tasks: asked first, killed after a grace period, or at once when a second Ctrl-C comes."""
    import ray

    left = list(tasks)
    try:
        _ask(left, force=False)
        deadline = time.monotonic() + GRACE_SECONDS + 1
        while left and time.monotonic() < deadline:
            ray.wait([task.stream for task in left], timeout=POLL_SECONDS)
            left = [task for task in left if not _advance(task, lambda event: None)]
    finally:
        _ask(left, force=True)


def _ask(tasks: Iterable[_Task], force: bool) -> None:
    import ray
    from ray.exceptions import RayError

    for task in tasks:
        with suppress(RayError, ValueError):  # it has just ended
            ray.cancel(task.stream, force=force)
