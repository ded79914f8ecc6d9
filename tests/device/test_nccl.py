"""A process group of one on this device (NCCL on a GPU, Gloo on the CPU): its collectives, and training in it.

One process cannot show that sums are right; it shows that the library is there, that what travels gets to the device and back,
and that training in a group is what it is without one. Sums over two processes are tested with Gloo.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from latentbench.core.resources import now
from latentbench.distributed.network import loopback
from latentbench.distributed.process_group import TorchProcessGroup
from latentbench.execute.placement import local_jobs
from latentbench.execute.training_launcher import train_on_devices
from latentbench.plan.plan import make_plan
from latentbench.plan.stages import stages_of
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.trainer import train
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from tests.numerics.test_sae_data_parallel import Blocks, Made, trainer
from tests.support.project import Workbench

PATIENCE = 60.0
NUMBERS = (torch.float32, torch.float64, torch.int64)
ROUNDS = 50


@pytest.fixture(scope="module")
def group(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchProcessGroup]:
    if device.type == "cuda" and not dist.is_nccl_available():
        pytest.skip("this torch was built without NCCL")
    os.environ["NCCL_SOCKET_IFNAME"] = loopback()  # as for processes that train together
    yield TorchProcessGroup(0, 1, device, tmp_path_factory.mktemp("group") / "meeting", PATIENCE)
    dist.destroy_process_group()


@pytest.mark.parametrize("number", NUMBERS)
def test_collectives_give_back_what_one_process_has(
    group: TorchProcessGroup, device: torch.device, number: torch.dtype
) -> None:
    for where in (device, torch.device("cpu")):
        values = torch.arange(12, device=where).to(number).view(3, 4)
        every_other = values.t()[::2]  # as gradients may come: not contiguous
        for given in (values, every_other, values[0, 1]):
            for collective in (group.all_sum, group.all_min):
                found = collective(given.clone())
                assert (found.device, found.dtype) == (where, number)
                assert torch.equal(found, given)
        assert torch.equal(group.all_gather(values.flatten()), values.flatten())


def test_bytes_travel_and_bits_are_compared(group: TorchProcessGroup, device: torch.device) -> None:
    content = bytes(range(256)) * 5
    assert group.broadcast(content) == content
    group.check_identical(
        {"a": torch.ones(3, device=device), "b": torch.ones((), dtype=torch.float64), "c": torch.eye(2)}
    )


def test_the_backend_is_that_of_the_device(
    group: TorchProcessGroup, device: torch.device, record_property: pytest.RecordProperty
) -> None:
    assert dist.get_backend() == ("nccl" if device.type == "cuda" else "gloo")
    x = torch.ones(1 << 20, device=device)
    group.all_sum(x)
    start = now(device)
    for _ in range(ROUNDS):
        group.all_sum(x)
    record_property("microseconds of a sum of 4 MiB", round(1e6 * (now(device) - start) / ROUNDS, 1))


@pytest.mark.parametrize("name", ["topk", "batch_topk", "hierarchical_topk", "kron", "jumprelu", "pca"])
def test_training_in_a_group_of_one_gives_the_bits_of_none(
    group: TorchProcessGroup, device: torch.device, name: str
) -> None:
    def trained(*groups: TorchProcessGroup) -> dict[str, Tensor]:
        one = trainer(name, torch.float32, *groups, device=device)
        states = list[Made]()

        def checkpoint(active: list[Made]) -> None:
            for each in groups:
                each.check_identical(active[0].state())
            states.append(active[0])

        done = train([one], Blocks(torch.float32, device=device), checkpoint, None, *groups)[one]
        assert isinstance(done, SparseAutoencoder), done
        assert len(states) == Blocks.blocks
        return done.state_dict()

    alone, together = trained(), trained(group)
    assert [key for key, tensor in alone.items() if not torch.equal(tensor, together[key])] == []


def test_a_process_of_its_own_trains_and_tells(bench: Workbench, device: torch.device) -> None:
    """As with several devices: a process that joins a group, trains, stores, and says how fast it was."""
    assert device.index in (None, 0), "processes take the first devices"
    bench.spec()
    project = bench.project
    store = Store(project.store)
    plan = make_plan(load_specs(project, ["mine"]), store, project.results, project.roots)
    (job,) = local_jobs(plan, project, device.type, 1)
    (planned,) = plan.cells
    (made,) = stages_of(planned.cell, project.roots).saes
    told = list[tuple[int, int]]()
    outcome = train_on_devices(job, {made.stage.key: planned.cell}, 1, lambda done, total: told.append((done, total)))
    assert outcome.failures == {}
    assert outcome.speeds[made.stage.key]
    assert store.has(made.stage.kind, made.stage.key)
    assert told[-1][0] == told[-1][1]
