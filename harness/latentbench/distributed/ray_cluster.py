"""Ray clusters: starting or joining one, and what its nodes have.

What a node runs stands in `harness/latentbench/distributed/ray_node.py`. Imports of Ray are inside of functions: it is an
extra, and nothing but the `ray` executor needs it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from typing import Any

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.text import plural

OBJECT_STORE_BYTES = 80 << 20
"""Only paths and lines of text travel. Stated because Ray would take a third of the memory, or fail on a small
/dev/shm."""

_SYSTEM = {"worker_niceness": 0}
"""Ray would give workers less of a busy machine than `local` does."""
_ANSWER_SECONDS = 5.0
_ADDRESS = r"[A-Za-z0-9_.\[\]:-]+:\d{1,5}"


@dataclass(frozen=True)
class ClusterNode:
    """What a machine of the cluster has in all, free or not."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.name}: {self.cpus:g} CPUs, {self.gpus:g} GPUs, {self.memory / 2**30:.1f} GiB"


@dataclass(frozen=True)
class ResourceRequest:
    """What a job reserves on the node it runs on."""

    cpus: int
    gpus: float = 0
    memory: int | None = None
    """Bytes; None reserves none."""

    def fits(self, node: ClusterNode) -> bool:
        """Whether the node could run it when idle."""
        return self.cpus <= node.cpus and self.gpus <= node.gpus and (self.memory or 0) <= node.memory

    def times_on(self, node: ClusterNode) -> int:
        """How often the node could run it at a time when idle."""
        pairs = [(self.cpus, node.cpus), (self.gpus, node.gpus), (self.memory or 0, node.memory)]
        return min(int(has // asked) for asked, has in pairs if asked)

    def options(self) -> dict[str, Any]:
        """Ray's names of the same; 0 for memory reserves none."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory or 0}

    def __str__(self) -> str:
        memory = f" and {self.memory / 2**30:.1f} GiB" if self.memory else ""
        return f"{plural(self.cpus, 'CPU')}, {self.gpus:g} GPUs{memory}"


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """This process as the driver of the cluster at `host:port`, or of one on this machine that ends with the block.

    Raises NotAvailable when Ray or the cluster is not there, InvalidInput for an address of another form.
    """
    if find_spec("ray") is None:
        raise NotAvailable("the executor 'ray' needs Ray: pip install 'latentbench[ray]'")
    if address is not None and not re.fullmatch(_ADDRESS, address):
        raise InvalidInput(f"--address {address!r} is not HOST:PORT of a Ray cluster this machine belongs to")
    if address is not None:
        _answers(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    import ray

    folder = None if address else tempfile.mkdtemp(prefix="lb-ray-")  # /tmp/ray may belong to another user
    try:
        _connect(address, folder)
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _answers(address: str) -> None:
    """Raises NotAvailable when nothing listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NotAvailable(f"no Ray cluster answers at {address}: {error}") from error


def _connect(address: str | None, folder: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    own: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": folder,
        "_system_config": dict(_SYSTEM),
    }
    try:
        # "local" and an explicit address never join a cluster that happens to run here, as Ray's default would.
        ray.init(address=address or "local", **quiet, **({} if address else own))
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray cannot be started here"
        raise NotAvailable(f"{what}: {first}") from error


def nodes() -> list[ClusterNode]:
    """The machines of the cluster that are alive now."""
    import ray

    listed: Any = ray.nodes  # untyped in Ray
    return [
        ClusterNode(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory=int(node["Resources"].get("memory", 0)),
        )
        for node in listed()
        if node["Alive"]
    ]


def slots(found: Iterable[ClusterNode], threads: int, gpus: float) -> int:
    """How many jobs of so many threads and GPUs run at a time."""
    free = (min(node.cpus / threads, node.gpus / gpus if gpus else inf) for node in found)
    return max(1, sum(map(int, free)))


def can_run(request: ResourceRequest, found: Iterable[ClusterNode]) -> bool:
    """Whether some node could run it when idle. Ray divides one GPU among tasks, but several it only gives whole."""
    shareable = request.gpus <= 1 or request.gpus == int(request.gpus)
    return shareable and any(map(request.fits, found))


def can_spread(request: ResourceRequest, times: int, found: Iterable[ClusterNode]) -> bool:
    """Whether the nodes could together run so many such requests at a time, each on one of them."""
    return sum(request.times_on(node) for node in found) >= times


def reserved(request: ResourceRequest, times: int) -> Any:
    """Ray's placement group for so many such requests at a time, on as few nodes as have room; it may still be waiting.

    When a node goes, Ray looks for other places for what was on it, and the rest stays where it is.
    """
    from ray.util import placement_group

    memory = {"memory": request.memory} if request.memory else {}
    gpus = {"GPU": request.gpus} if request.gpus else {}
    return placement_group([{"CPU": request.cpus, **gpus, **memory}] * times, strategy="PACK")


def given_back(group: Any) -> None:
    """Ends a reservation."""
    from ray.util import remove_placement_group

    remove_placement_group(group)
