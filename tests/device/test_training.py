"""Training SAEs on this device: what a CPU trains, up to rounding; and from a checkpoint, bit for bit what it would have been.

In float64 the choice of latents cannot depend on rounding for all practical purposes, so that whole trainings can be compared.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.sparse_kernels.dispatch import forced
from latentbench.sae.trainer import train
from tests.numerics.test_sae_data_parallel import OPTIONS, REVIVED, Blocks, Made, apart, trainer
from tests.support.process_groups import CPU

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-9
"""Of weights in float64, relative to the largest of their tensor."""
STOP = 3
"""Blocks before the interruption, of eight."""
COMPARED = sorted(set(OPTIONS) - {"extended"})
"""Without the one that starts from copies of its own latents: between equals each device may choose differently."""
NOT_COMPARED = ("memory", "kernels")
"""What a state says of the way it was made: a measurement, and which kernels there were."""


class Until(Blocks):
    """The stream's blocks up to one of them."""

    def __init__(self, dtype: torch.dtype, device: torch.device, last: int) -> None:
        super().__init__(dtype, device=device)
        self.blocks = last


def trained(
    name: str, dtype: torch.dtype, device: torch.device, state: dict[str, Tensor] | None = None, last: int = 8
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state after block `last` - 1, and the weights at the end, both on the CPU; from `state` on if there is one."""
    one, reached = trainer(name, dtype, device=device), dict[str, Tensor]()
    if state is not None:
        one.load_state(state)

    def checkpoint(active: list[Made]) -> None:
        reached.update({key: tensor.cpu() for key, tensor in active[0].state().items()})

    done = train([one], Until(dtype, device, last), checkpoint)[one]
    assert isinstance(done, SparseAutoencoder), done
    weights = done.state_dict()
    assert {tensor.device for tensor in weights.values()} == {device}
    return reached, {key: tensor.cpu() for key, tensor in weights.items()}


def furthest(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of any weight, relative to the largest of its tensor."""
    assert weights.keys() == wanted.keys()
    return max(apart(tensor, weights[key]) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", COMPARED)
def test_it_trains_what_a_cpu_trains(name: str, device: torch.device, record_property: pytest.RecordProperty) -> None:
    (state, weights), (expected, wanted) = (trained(name, torch.float64, where) for where in (device, CPU))
    record_property("largest difference in float64", found := furthest(weights, wanted))
    assert found <= TOLERANCE
    if "silent" in state:
        assert torch.equal(state["silent"], expected["silent"])
        torch.testing.assert_close(state["curve"], expected["curve"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", REVIVED)
def test_so_do_torchs_operations(name: str, device: torch.device) -> None:
    """Which take over where the kernels cannot be had."""
    with forced("torch"):
        _, weights = trained(name, torch.float64, device)
    assert furthest(weights, trained(name, torch.float64, CPU)[1]) <= TOLERANCE


@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_goes_on_bit_for_bit(
    name: str, device: torch.device, record_property: pytest.RecordProperty
) -> None:
    whole, wanted = trained(name, torch.float32, device)
    again, _ = trained(name, torch.float32, device)
    before, _ = trained(name, torch.float32, device, last=STOP)
    after, weights = trained(name, torch.float32, device, load(save(before)))
    if found := unordered(name, device):
        record_property("operations without a fixed order", found)
    for other in (again, after):
        assert [key for key in differing(whole, other) if key not in NOT_COMPARED] == []
    assert differing(wanted, weights) == []


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [key for key, tensor in one.items() if not torch.equal(tensor, other[key])]


def unordered(name: str, device: torch.device) -> str:
    """What torch itself says may add in another order next time; where nothing is, training must not depend on luck."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(name, torch.float32, device, last=STOP)
    finally:
        torch.use_deterministic_algorithms(False)
    said = (str(warning.message) for warning in caught)
    return ", ".join(sorted({text.split()[0] for text in said if "not have a deterministic" in text}))
