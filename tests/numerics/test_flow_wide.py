"""Wide dictionaries: what is found in them, and the memory that is promised."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentbench.bench.flow import peak_memory
from latentbench.flow import matching
from latentbench.flow.activity import Activity
from latentbench.flow.matching import assigned, correlated
from latentbench.flow.options import Flow
from latentbench.sae.autoencoder import Codes
from tests.support.flow import unit

pytestmark = pytest.mark.usefixtures("one_thread")

WIDEST, SLACK = 65_536, 24 << 20
"""Of the issue, and what the allocator and the libraries' threads may take beside."""


def fired_together(width: int, tokens: int, active: int) -> tuple[Activity, Activity, Tensor]:
    """Two sites: latent π(i) of the second fires where i of the first does, twice as strongly, among latents of its own."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(width, generator=generator)
    first, second = Activity(width), Activity(width)
    for start in range(0, tokens, 1000):
        here = torch.arange(start, min(start + 1000, tokens))
        slots = (here[:, None] * active + torch.arange(active)) % width  # every latent in turn, none twice in a token
        values = torch.rand(slots.shape, generator=generator) + 0.1
        noise = torch.randint(0, width, (len(here), 1), generator=generator)
        extra = torch.where((order[slots] == noise).any(1, keepdim=True), 0.0, 0.2)
        first.add(Codes(values, slots))
        second.add(Codes(torch.cat([2 * values, extra], 1), torch.cat([order[slots], noise], 1)))
    return first, second, order


def test_planted_partners_are_found_by_their_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "TILE", 3 * 600)  # a tile of three latents, and a last one of what remains
    first, second, order = fired_together(601, 4000, 8)
    forward, backward = correlated(first, second, 1)
    assert torch.equal(forward.indices[:, 0], order)
    assert torch.equal(backward.indices[order, 0], torch.arange(601))
    assert float(forward.scores.min()) > 0.9


def test_a_planted_permutation_is_found_among_8192_by_the_sparse_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = unit(torch.randn(8192, 32, generator=generator))
    order = torch.randperm(8192, generator=generator)
    other = unit(rows[order] + 0.5 * unit(torch.randn(8192, 32, generator=generator)))
    forward, backward = assigned(rows, other, unit=True, exact_width=Flow().exact_width, neighbours=16)
    assert (backward.indices[:, 0] == order).double().mean() >= 0.99
    assert torch.equal(forward.indices[:, 0].sort().values, torch.arange(8192))
    assert torch.equal(backward.indices[forward.indices[:, 0], 0], torch.arange(8192))


@pytest.mark.parametrize("width", [8193, 10**6])
def test_a_matrix_that_would_not_fit_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="less than or equal to 8192"):
        Flow(exact_width=width)


@pytest.mark.slow
def test_matching_65536_latents_stays_within_its_bound() -> None:
    d = 16
    tile = 4 * (matching.SOURCE_ROWS * matching.TARGET_ROWS + (matching.SOURCE_ROWS + matching.TARGET_ROWS) * d)
    assert peak_memory(WIDEST, d, 1) < 2 * tile + 2 * 12 * WIDEST + SLACK


@pytest.mark.slow
def test_correlating_65536_latents_stays_within_its_bound() -> None:
    tokens, active = 20_000, 8
    latents = tokens * (2 * active + 1)
    assert _peak(_correlate, tokens, active) < 20 * latents // 2 + 28 * matching.TILE + 2 * 16 * WIDEST + SLACK


@pytest.mark.slow
def test_the_sparse_assignment_stays_within_its_bound() -> None:
    edges = 16_384 * (2 * 64 + 1)
    assert _peak(_assign, 16_384, 64) < 100 * edges + SLACK


def _correlate(tokens: int, active: int) -> Callable[[], object]:
    first, second, _ = fired_together(WIDEST, tokens, active)
    first.matrix(), second.matrix()
    correlated(*fired_together(64, 50, 2)[:2], 1)
    return lambda: correlated(first, second, 1)


def _assign(width: int, neighbours: int) -> Callable[[], object]:
    rows = [unit(torch.randn(width, 16, generator=torch.Generator().manual_seed(seed))) for seed in range(2)]
    assigned(rows[0][:64], rows[1][:64], unit=True, exact_width=1, neighbours=4)
    return lambda: assigned(rows[0], rows[1], unit=True, exact_width=1, neighbours=neighbours)


def _peak(prepare: Callable[[int, int], Callable[[], object]], *given: int) -> int:
    """Bytes that a task needs beyond what it is given, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, prepare, *given).result()


def _peak_here(prepare: Callable[[int, int], Callable[[], object]], *given: int) -> int:
    task = prepare(*given)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
    before = _status("VmRSS")
    task()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
