"""`python -m latentbench.execute.training_worker FILE`: one of the processes that train SAEs together, each on a device
of its own.

`harness/latentbench/execute/training_launcher.py` has all of them started and watches. On one machine they meet at a file
beside theirs and talk through the loopback interface, on several at a port of the first one; the first one writes checkpoints and SAEs, tells how far it is, and says at the end
what became of them. Torch is loaded inside of functions: it takes seconds, and before them `serve` must be watching the
parent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentbench.core.errors import CellFailed
from latentbench.core.progress import unwatched
from latentbench.distributed.network import NODE_ADDRESS, interface_of, loopback
from latentbench.distributed.progress_meter import ProgressMeter
from latentbench.distributed.rank_mailbox import MEETING
from latentbench.distributed.worker_process import Event, EventHandler
from latentbench.execute.training_launcher import OUTCOME, RankJob
from latentbench.execute.worker import serve
from latentbench.plan.stages import stages_of
from latentbench.store.files import read_json, write_json

if TYPE_CHECKING:
    from latentbench.distributed.process_group import ProcessGroup
    from latentbench.execute.training_stage import TrainingRequest


def main(path: str) -> int:
    """Takes part in the training in the file at `path`."""

    def work(report: EventHandler) -> None:
        _train(RankJob.from_json(read_json(Path(path))), Path(path).parent, report)

    return serve(work, grace=0.0)  # nothing to tidy up: whatever is written appears whole


def _train(task: RankJob, folder: Path, report: EventHandler) -> None:
    """Trains together with the processes whose files are in `folder`, and as the first one writes there what came of
    it."""
    import torch

    from latentbench.execute.job_inputs import ModelCache
    from latentbench.execute.training_stage import TrainingRunner
    from latentbench.store.store import Store

    torch.set_num_threads(task.job.threads)
    group = _joined(task, folder)
    training = TrainingRunner(Store(task.job.store), ModelCache(task.job.roots, task.device), group)
    with ProgressMeter("training", lambda message: report(Event("progress", progress=message))) as meter:
        failures = training.make(list(_requests(task)), meter if task.rank == 0 else unwatched)
    if task.rank == 0:
        failed = {key: {"type": type(error).__name__, "message": str(error)} for key, error in failures.items()}
        write_json(folder / OUTCOME, {"failures": failed, "speeds": training.speeds})


def _joined(task: RankJob, folder: Path) -> ProcessGroup:
    """The group of all processes."""
    import torch

    from latentbench.distributed.process_group import TorchProcessGroup, meet_at_port

    # Left to choose, Gloo would bind to whatever the host's name resolves to and NCCL to some network interface, and
    # neither has to work.
    host = os.environ.get(NODE_ADDRESS, "") if task.job.spread else ""
    if name := interface_of(host) if task.job.spread else loopback():
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    file = folder / MEETING
    if not task.job.spread:
        return TorchProcessGroup(task.rank, task.size, torch.device(task.device), file, task.patience)
    met = meet_at_port(file, task.rank, task.size, host, task.meeting, task.patience)
    return TorchProcessGroup(task.rank, task.size, torch.device(task.device), met, task.patience)


def _requests(task: RankJob) -> Iterator[TrainingRequest]:
    """The SAEs, in the order that all processes keep."""
    from latentbench.execute.training_stage import TrainingRequest

    found: dict[str, TrainingRequest] = {}
    for item in task.job.cells:
        for made in stages_of(item.cell, task.job.roots).saes:
            found |= {below.stage.key: TrainingRequest(item.cell, below) for _, below in made.levels()}
    if missing := set(task.keys) - found.keys():
        raise CellFailed(
            f"files changed between planning and running ({len(missing)} SAEs are others now); run it again"
        )
    yield from (found[key] for key in task.keys)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
