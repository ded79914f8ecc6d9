"""A team of processes on one machine, joined by torch.distributed: NCCL between GPUs, Gloo between CPU processes.

Only tensors travel: torch's collectives for objects would pickle them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from latentbench.errors import CellFailed, InvalidInput
from latentbench.sae.team import Team

LOST_PEER = 75
"""Exit code of a member that ends because another does not answer: it is not the one to blame."""


class ProcessTeam(Team):
    """One of `size` processes, each with a device of its own."""

    def __init__(self, rank: int, size: int, device: torch.device, meeting: Path, patience: float) -> None:
        """Waits for the others at the file `meeting`. Who is silent for `patience` seconds is given up."""
        self.rank, self.size, self.device = rank, size, device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _together(
            dist.init_process_group,
            "nccl" if device.type == "cuda" else "gloo",
            store=FileStore(str(meeting), size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience),
        )

    def sum(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def lowest(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def joined(self, values: Tensor) -> Tensor:
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(values)
        lengths = self.sum(lengths)
        own = torch.zeros(int(lengths.max()), dtype=values.dtype, device=self.device)
        own[: len(values)] = values
        parts = [torch.empty_like(own) for _ in range(self.size)]
        _together(dist.all_gather, parts, own)
        found = [part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]
        return torch.cat(found).to(values.device)

    def first(self, content: bytes) -> bytes:
        length = int(self.sum(torch.tensor([len(content) if self.rank == 0 else 0])))
        given = bytearray(content) if self.rank == 0 else bytearray(length)
        moved = torch.frombuffer(given, dtype=torch.uint8).to(self.device)
        _together(dist.broadcast, moved, 0)
        return moved.cpu().numpy().tobytes()

    def check(self, state: Mapping[str, Tensor]) -> None:
        own = torch.stack([_fingerprint(tensor) for _, tensor in sorted(state.items())])
        if not torch.equal(self.lowest(torch.cat([own, -own])), torch.cat([own, -own])):
            raise RuntimeError("the processes that train one SAE do not hold the same bits any more")

    def shares(self, error: Exception) -> bool:
        """Those that follow from what all members hold; a full disk or memory is one member's own."""
        return type(error) in (CellFailed, InvalidInput)

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        moved = tensor.to(self.device).contiguous()
        _together(dist.all_reduce, moved, operation)
        return moved.to(tensor.device)


def _together(operation: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """What all members do. When one is gone, this process ends, past everything that puts ordinary errors aside."""
    try:
        operation(*arguments, **named)
    except RuntimeError as error:
        print(f"lost the other processes: {error}", file=sys.stderr, flush=True)
        raise SystemExit(LOST_PEER) from error


def _fingerprint(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits as integers, which no order of summation changes: int64 scalar on the CPU."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64).cpu()
