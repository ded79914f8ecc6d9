"""Requests of jobs against what nodes have: pure functions, no Ray needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.distributed import ray_cluster
from latentbench.distributed.ray_cluster import ClusterNode, ResourceRequest, can_spread, joined, slots
from latentbench.execute.job import Job
from latentbench.execute.placement import local_jobs
from latentbench.execute.ray_executor import fitted, part_of, request_of
from latentbench.plan.plan import make_plan
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from tests.support.project import Workbench

GIB = 1 << 30
SMALL = ClusterNode("a", "small", cpus=2, gpus=0, memory=4 * GIB)
LARGE = ClusterNode("b", "large", cpus=8, gpus=2, memory=64 * GIB)


def job(bench: Workbench, device: str = "cuda", **changes: Any) -> Job:
    """One job with every cell of a spec."""
    bench.spec(**changes)
    project = bench.project
    plan = make_plan(load_specs(project, ["mine"]), Store(project.store), project.results, project.roots)
    (made,) = local_jobs(plan, project, device, 1)
    return made


@pytest.mark.parametrize(
    ("resources", "device", "expected"),
    [
        ({"cpus": 3}, "cpu", ResourceRequest(3)),
        ({"cpus": 1, "gpus": 0.5}, "cuda", ResourceRequest(1, 0.5)),
        ({"cpus": 1, "gpus": 2, "memory": "3GiB"}, "cuda", ResourceRequest(1, 2, 3 * GIB)),
        ({"cpus": 1, "gpus": 2}, "cpu", ResourceRequest(1)),
        ({"cpus": 1}, "cuda", ResourceRequest(1, 1)),
    ],
)
def test_resources_become_a_request(bench: Workbench, resources: Any, device: str, expected: ResourceRequest) -> None:
    assert request_of(job(bench, device, resources=resources)) == expected


def test_each_device_that_trains_reserves_its_own(bench: Workbench) -> None:
    asked = {"cpus": 2, "memory": "1GiB"}
    assert request_of(job(bench, "cuda", resources=asked, training__devices=2)) == ResourceRequest(4, 2, 2 * GIB)
    assert request_of(job(bench, "cpu", resources=asked, training__devices=2)) == ResourceRequest(4, 0, 2 * GIB)
    (thin,) = fitted([job(bench, "cpu", training__devices=2)], [ClusterNode("a", "a", 2, 0, GIB)])
    assert (thin.threads, request_of(thin).cpus) == (1, 2)


TWO_GPUS = {"resources": {"cpus": 4, "memory": "1GiB"}, "training__devices": 4}


def test_what_one_node_has_not_is_spread_over_several(bench: Workbench) -> None:
    made = job(bench, **TWO_GPUS)
    four = [replace(LARGE, id=name) for name in "ab"]
    (spread,) = fitted([made], four)
    assert spread.spread
    assert part_of(spread) == ResourceRequest(4, 1, 1 * GIB)
    (whole,) = fitted([made], [replace(LARGE, cpus=16, gpus=4)])
    assert not whole.spread
    with pytest.raises(InvalidInput, match="16 CPUs, 4 GPUs"):
        fitted([made], [LARGE, SMALL])
    with pytest.raises(InvalidInput, match="can ever run"):  # one process alone is too large for any node
        fitted([job(bench, **{**TWO_GPUS, "resources": {"cpus": 9}})], four * 3)


def test_what_takes_one_device_is_never_spread(bench: Workbench) -> None:
    with pytest.raises(InvalidInput, match="can ever run"):
        fitted([job(bench, resources={"cpus": 8, "gpus": 2.5})], [LARGE] * 4)


def test_places_are_counted_by_what_is_scarcest() -> None:
    part = ResourceRequest(2, 1, 8 * GIB)
    assert [part.times_on(node) for node in (SMALL, LARGE, replace(LARGE, memory=9 * GIB))] == [0, 2, 1]
    assert can_spread(part, 4, [LARGE, LARGE])
    assert not can_spread(part, 5, [LARGE, LARGE, SMALL])


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({"gpus": 3, "cpus": 1}, "1 CPU, 3 GPUs: mine[seed=0]"),
        ({"gpus": 1.5, "cpus": 1}, "1 CPU, 1.5 GPUs: mine[seed=0]"),
        ({"cpus": 9}, "9 CPUs, 1 GPUs: mine[seed=0]"),
        ({"cpus": 1, "memory": "65GiB"}, "and 65.0 GiB: mine[seed=0]"),
    ],
)
def test_what_no_node_has_is_refused_with_cell_and_nodes(bench: Workbench, resources: Any, wanted: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        fitted([job(bench, resources=resources)], [SMALL, LARGE])
    assert wanted in str(caught.value)
    assert "large: 8 CPUs, 2 GPUs, 64.0 GiB; small: 2 CPUs, 0 GPUs, 4.0 GiB" in str(caught.value)


def test_no_node_alone_has_what_two_have_together(bench: Workbench) -> None:
    with pytest.raises(InvalidInput, match="can ever run"):
        fitted([job(bench, resources={"cpus": 8, "gpus": 1})], [replace(LARGE, gpus=0), replace(SMALL, gpus=8)])


def test_threads_nobody_asked_for_shrink_to_the_largest_node(bench: Workbench) -> None:
    made = replace(job(bench, "cpu"), threads=64)
    assert [placed.threads for placed in fitted([made], [SMALL, LARGE])] == [8]


def test_a_group_that_is_too_much_together_is_taken_apart(bench: Workbench) -> None:
    cases = [{"label": "wide", "resources": {"cpus": 8}}, {"label": "fat", "resources": {"cpus": 1, "memory": "30GiB"}}]
    made = job(bench, "cpu", cases=cases)
    nodes = [replace(LARGE, memory=1 * GIB), replace(SMALL, memory=32 * GIB)]
    parts = fitted([made], nodes)
    assert [(part.cells[0].cell.label, request_of(part)) for part in parts] == [
        ("wide", ResourceRequest(8)),
        ("fat", ResourceRequest(1, 0, 30 * GIB)),
    ]
    assert fitted([made], [LARGE]) == [made]


def test_slots_count_what_is_scarcest() -> None:
    assert slots([SMALL, LARGE], 2, 0) == 5
    assert slots([SMALL, LARGE], 2, 1) == 2
    assert slots([SMALL, LARGE], 2, 0.5) == 4
    assert slots([SMALL], 64, 0) == 1


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match=r"pip install 'latentbench\[ray\]'"), joined(None):
        pass


@pytest.mark.parametrize("address", ["auto", "local", "ray://host:10001", "host", "host:port", "a b:1", "host:123456"])
def test_an_address_is_a_host_and_a_port(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: object())
    with pytest.raises(InvalidInput, match="is not HOST:PORT"), joined(address):
        pass
