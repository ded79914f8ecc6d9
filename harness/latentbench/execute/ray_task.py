"""What the `ray` executor runs on a node: the same worker process as `local`, with the same limits and log.

Only lines of text come back: the node, then the worker's events, last how cells were lost that have no record.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from latentbench.execute.events import Loss
from latentbench.execute.process import POLL_SECONDS, Limits, WorkerProcess, stop

PASSED_ON = ("PYTHONPATH", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Variables of the driver that a worker gets. Keys and tokens are not among them: nodes have their own."""


def work(file: str, limits: Limits, variables: dict[str, str]) -> Iterator[str]:
    """Runs the job in `file`, a path on a disk that all nodes share, and yields what happens as JSON, line by line.

    The job is not read here: it may name plug-ins that only the worker finds, through a PYTHONPATH passed on.
    """
    import ray

    node, path = ray.get_runtime_context().get_node_id(), Path(file)
    yield json.dumps({"node": node})
    os.environ.update(variables)
    log, host, gpus = path.with_suffix(".log"), os.uname().nodename, os.environ.get("CUDA_VISIBLE_DEVICES")
    if not path.is_file():
        hint = "the project, results and store must be on a disk that all nodes share"
        yield _line(Loss("failed", "NotShared", f"{host} does not have {path}; {hint}"))
        return
    log.write_text(f"node {host} ({node[:8]}), GPUs {gpus or 'none'}\n")
    worker = WorkerProcess(path, log, limits)
    try:
        while not worker.ended():
            yield from (event.line() for event in worker.new_events())
            time.sleep(POLL_SECONDS)
        yield from (event.line() for event in worker.new_events())
        yield _line(worker.loss)
    finally:
        stop([worker])


def _line(loss: Loss) -> str:
    return json.dumps(asdict(loss), ensure_ascii=False)
