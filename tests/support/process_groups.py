"""Processes that train together by Gloo, forked from the server that has imported everything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.distributed.process_group import ProcessGroup, TorchProcessGroup
from tests.support.forked import _CONTEXT

CPU = torch.device("cpu")
Work = Callable[[ProcessGroup, Path], None]


def together(work: Work, folder: Path, size: int = 2, seconds: float = 120) -> list[int]:
    """Runs `work(group, folder)` in as many processes; their exit codes. Who hangs is killed."""
    processes = [_CONTEXT.Process(target=_member, args=(work, rank, size, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()
    return [int(process.exitcode or 0) for process in processes]


def _member(work: Work, rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    work(TorchProcessGroup(rank, size, CPU, folder / "meeting", 60), folder)


class Shares:
    """Another stream's batches, of which the members have unequal parts, dealt anew for every batch."""

    def __init__(self, whole: object, group: ProcessGroup, first: float = 0.3) -> None:
        """`first`: part of the tokens that the first member has."""
        self.whole, self.group, self.first = whole, group, first
        self.blocks, self.steps = whole.blocks, whole.steps  # type: ignore[attr-defined]
        self.means, self.first_norms = whole.means, whole.first_norms  # type: ignore[attr-defined]

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        generator = torch.Generator().manual_seed(1000 + block)
        for batch in self.whole.batches(block):  # type: ignore[attr-defined]
            tokens = len(next(iter(batch.values())))
            mine = torch.rand(tokens, generator=generator) < self.first
            mine[:2] = torch.tensor([True, False])  # nobody is left without
            mine = mine if self.group.rank == 0 else ~mine
            yield {site: x[mine] for site, x in batch.items()}
