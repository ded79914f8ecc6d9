"""One SAE trained on several nodes of a Ray cluster: two and more raylets on this machine, each with a device of its own.

Node counts, not machines, are what Ray places by, so everything but the network between them is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from latentbench.sae.artifact import load_training
from tests.conftest import furnish
from tests.e2e.test_ray_faults import wait_for
from tests.support.project import Workbench
from tests.support.ray import NEEDS_RAY, SMALL, start_cluster

pytestmark = [NEEDS_RAY, pytest.mark.slow]

TWO_DEVICES = {
    "training__devices": 2,
    "resources__cpus": 1,
    "dataset__train__repeat": True,
    "metrics": ["explained_variance"],
}


@contextmanager
def nodes(*cpus: int) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head computes nothing, and nodes with so many processors each."""
    cluster = start_cluster(num_cpus=0)
    try:
        yield cluster, [cluster.add_node(num_cpus=number, **SMALL) for number in cpus]
    finally:
        cluster.shutdown()


def project(root: Path, model: Path, tokens: int, **changes: Any) -> Workbench:
    bench = Workbench(furnish(root, model).root)
    bench.spec(**TWO_DEVICES, dataset__train__tokens=tokens, **changes)
    return bench


def on(cluster: Any) -> tuple[str, ...]:
    return ("run", "--executor", "ray", "--address", cluster.address, "--device", "cpu")


def here() -> tuple[str, ...]:
    return ("run", "--executor", "inline", "--device", "cpu")


def steps(bench: Workbench) -> list[dict[str, int]]:
    """How many steps of each SAE were made on how many devices."""
    folders = sorted((bench.root / "results/store/objects/sae").glob("*/*"))
    return [load_training(folder)["devices"] for folder in folders]


def test_two_nodes_make_the_sae_of_two_processes_bit_for_bit_and_go_on_when_one_dies(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench, alone = (project(tmp_path / name, tiny_model, tokens=48_000) for name in ("nodes", "alone"))
    with nodes(1, 1) as (cluster, (_, second)):
        process = bench.start(*on(cluster))
        wait_for(lambda: list((bench.root / "results/store/partial").glob("*/state*")))
        cluster.add_node(num_cpus=1, **SMALL)
        cluster.remove_node(second, allow_graceful=False)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "goes on from the last checkpoint" in err
    done = alone.process(*here())
    assert done.code == 0, done.err
    assert bench.weights() == alone.weights()
    assert steps(bench) == steps(alone)
