"""The kernels of the sparse products on this device: against dense float64 gradients, whole variants against torch's operations.

The same list runs in Triton's interpreter (`tests/numerics/test_sae_triton.py`); what only a GPU can show is that the machine
code does the same, and that nothing depends on the order in which its programs run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from latentbench.sae.autoencoder import Codes
from latentbench.sae.sparse_kernels import dispatch
from latentbench.sae.sparse_kernels.autograd import sparse_decode
from latentbench.sae.sparse_kernels.backend import Backend
from tests.support.interpreted import CPU, Problem, checks, dirty, error

TOLERANCE = 1e-6
EXACT = ("two runs", "padding", "check on a GPU")
NAMES = tuple(checks(CPU))
BYTES = 48 << 30
"""Free memory that the test of offsets beyond 32 bits wants."""


@pytest.fixture(autouse=True)
def kernels(device: torch.device) -> Iterator[str]:
    """Triton's kernels on a GPU, whatever they give: a fallback to torch's operations would hide what is wrong."""
    name = "triton" if device.type == "cuda" else dispatch.FORCED
    if name == "triton" and find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with dispatch.forced(name), dirty():
        yield name


def test_the_kernels_of_this_device_are_taken(device: torch.device, kernels: str) -> None:
    """Without being forced: on a GPU Triton's, after a small problem was computed by them and by torch."""
    with warnings.catch_warnings(), dispatch.forced("" if device.type == "cuda" else kernels):
        warnings.simplefilter("error", UserWarning)  # a fallback says why
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        found = dispatch.backend(torch.ones(1, device=device)).name
    assert found == (kernels or "numba")


@pytest.mark.parametrize("name", NAMES)
def test_products_and_gradients_are_right(
    name: str, device: torch.device, kernels: str, record_property: pytest.RecordProperty
) -> None:
    if name == "check on a GPU" and kernels != "triton":
        pytest.skip("needs Triton on a GPU, or its interpreter")
    found = checks(device, kernels)[name]()
    record_property("error", found)
    assert found <= (0 if name in EXACT else 1e-5 if name == "trainer in float32" else TOLERANCE)


def test_tensors_need_not_be_contiguous(device: torch.device) -> None:
    p = Problem.of(6, 6, 12, 13).to(device)
    weight = p.weight.t().contiguous().t()
    every_other = Codes(p.values[:, ::2], p.indices[:, ::2])
    assert not weight.is_contiguous()
    assert not every_other.values.is_contiguous()
    dense = every_other.dense(len(weight)) @ p.weight
    assert error(sparse_decode(every_other, weight), dense) <= TOLERANCE


def far_apart(kernels: Backend, device: torch.device, width: int, d: int) -> float:
    """Error of a decoder's product and gradients where latents at both ends of the dictionary are active."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.empty(width, d, device=device).normal_(generator=generator)
    indices = torch.tensor([[width - 1, 3], [width // 2, width - 2], [0, width - 1]], device=device)
    values = torch.tensor([[1.5, -0.5], [2.0, 0.25], [0.5, 1.0]], device=device)
    g = torch.empty(3, d, device=device).normal_(generator=generator)
    rows = weight[indices]
    own = kernels.decode(values, indices, weight)
    dvalues, dweight = kernels.decode_backward(values, indices, weight, g)
    encoded, _ = kernels.encode_backward(values, indices, g, width)
    sums = {latent: torch.zeros(d, device=device) for latent in indices.flatten().tolist()}
    for token, latents in enumerate(indices.tolist()):
        for value, latent in zip(values[token], latents, strict=True):
            sums[latent] += value * g[token]
    errors = [
        error(own, (rows * values[..., None]).sum(1)),
        error(dvalues, (rows * g[:, None]).sum(2)),
        *(error(gradient[latent], wanted) for latent, wanted in sums.items() for gradient in (dweight, encoded)),
    ]
    # All other rows hold zeros: a row that was written to a wrapped offset would show, and so would one never written.
    for gradient in (dweight, encoded):
        gradient[list(sums)] = 0
        errors.append(float(gradient.abs_().max()))
    return max(errors)


def test_offsets_go_beyond_32_bits(device: torch.device, kernels: str) -> None:
    own = dispatch.backend(torch.ones(1, device=device))
    assert far_apart(own, device, 12, 33) <= 1e-5
    if device.type != "cuda" or torch.cuda.mem_get_info(device)[0] < BYTES:
        pytest.skip(f"needs a GPU with {BYTES >> 30} GiB of free memory; smaller ones are right")
    assert far_apart(own, device, 70_000, 32_768) <= 1e-5
