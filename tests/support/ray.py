"""A Ray cluster on this machine, started once per test session."""

from __future__ import annotations

import atexit
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest

NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
SMALL = {"object_store_memory": 80 << 20}
HEAD = {**SMALL, "include_dashboard": False}


def start_cluster(**head: Any) -> Any:
    """A cluster with one node, as `ray.cluster_utils.Cluster`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # other tests may keep the processors busy
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={**HEAD, **head})


@cache
def address() -> str:
    """Of the cluster that tests share: one node with two CPUs."""
    cluster = start_cluster(num_cpus=2)
    atexit.register(cluster.shutdown)
    return str(cluster.address)


def placed(executor: str) -> tuple[str, ...]:
    """Options that make the command line compute on an executor."""
    where = ("--address", address()) if executor == "ray" else ()
    return ("--executor", executor, *where)
