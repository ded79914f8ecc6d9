"""The processes that train an SAE together: this one alone, or several that each see their own share of every batch.

All members run the same program from the same seeds and hold the same state; only the tokens differ. What depends on the
whole batch is added up here. Every collective is called by all members in the same order and gives all of them the same.

Several processes are joined by torch.distributed: NCCL between GPUs, Gloo between CPU processes. Only tensors travel:
torch's collectives for objects would pickle them. On one machine they meet at a file, on several at a port of member 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.distributed.worker_process import LOST_PEER
from latentbench.store.files import write_bytes

MeetingPort: TypeAlias = Any
"""What `meet_at_port` gives: a `torch.distributed.Store`, a class that torch's own annotations do not name."""


class ProcessGroup:
    """This process alone: every collective gives back what it is given. Subclasses join several processes."""

    rank = 0
    """Number of this member; member 0 writes what is kept."""
    size = 1
    """How many members there are."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum of the members' tensors of one shape; `tensor` may be overwritten."""
        return tensor

    def all_min(self, tensor: Tensor) -> Tensor:
        """Smallest of the members' values, element by element; `tensor` may be overwritten."""
        return tensor

    def all_gather(self, values: Tensor) -> Tensor:
        """The members' vectors, of any length each, one after the other by rank."""
        return values

    def broadcast(self, content: bytes) -> bytes:
        """What member 0 gives; the others' `content` is ignored."""
        return content

    def check_identical(self, state: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError unless all members hold the same bits."""

    def is_common_error(self, error: Exception) -> bool:
        """Whether all members meet this error alike, so that they can go on together without what it belongs to."""
        return True


SINGLE_PROCESS = ProcessGroup()


class UsesProcessGroup:
    """Part of an SAE whose training may look at the whole batch, not at each token alone."""

    group: ProcessGroup = SINGLE_PROCESS
    """The processes whose shares make up the batch; set by the trainer."""


def set_process_group(sae: nn.Module, group: ProcessGroup) -> None:
    """Gives `group` to every part of an SAE that looks at the whole batch."""
    for part in sae.modules():
        if isinstance(part, UsesProcessGroup):
            part.group = group


def global_mean(values: Tensor, group: ProcessGroup) -> Tensor:
    """Mean of `values` [n] over the tokens of all members, for losses that are not linear in it.

    Its gradient is that of this member's mean: weighted by tokens and added up, those are the gradient of the whole.
    """
    own = values.mean()
    if group.size == 1:
        return own
    # Collectives carry no gradient, so only the number is exchanged; `own + shift` has its value and `own`'s gradient.
    total, tokens = group.all_sum(torch.stack([values.detach().sum(), own.new_tensor(len(values))]).double())
    shift: Tensor = (total / tokens).to(own) - own.detach()
    return own + shift


def squared_spread(x: Tensor, tokens: int, group: ProcessGroup) -> Tensor:
    """Scalar: Σ ‖x − x̄‖² over the `tokens` tokens of all members, of which this one has `x` [n, d]."""
    # The centre of the whole batch first: spreads about members' own means would add up to less.
    centre = group.all_sum(x.sum(0)) / tokens
    return group.all_sum((x - centre).pow(2).sum())


class TorchProcessGroup(ProcessGroup):
    """One of `size` processes, each with a device of its own."""

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        meeting: Path | MeetingPort,
        patience: float,
    ) -> None:
        """Waits for the others at `meeting`, a file or what `meet_at_port` gives. Who is silent for `patience` seconds is
        given up."""
        self.rank, self.size, self.device = rank, size, device
        if device.type == "cuda":
            torch.cuda.set_device(
                device
            )  # torch asks every rank for it: some of NCCL's work goes to the current device
        # A file where that will do, since a port could be answered by another job or another user.
        store = dist.FileStore(str(meeting), size) if isinstance(meeting, Path) else meeting  # type: ignore[attr-defined]
        _collective(
            dist.init_process_group,
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience),
        )

    def all_sum(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def all_min(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def all_gather(self, values: Tensor) -> Tensor:
        # all_gather takes tensors of one shape, so everybody pads to the longest vector, whose length nobody knows yet.
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(values)
        lengths = self.all_sum(lengths)
        own = torch.zeros(int(lengths.max()), dtype=values.dtype, device=self.device)
        own[: len(values)] = values
        parts = [torch.empty_like(own) for _ in range(self.size)]
        _collective(dist.all_gather, parts, own)
        found = [part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]
        return torch.cat(found).to(values.device)

    def broadcast(self, content: bytes) -> bytes:
        length = int(self.all_sum(torch.tensor([len(content) if self.rank == 0 else 0])))
        # `torch.frombuffer` shares memory, which broadcast writes to: bytes are read-only, a bytearray is not.
        given = bytearray(content) if self.rank == 0 else bytearray(length)
        moved = torch.frombuffer(given, dtype=torch.uint8).to(self.device)
        _collective(dist.broadcast, moved, 0)
        return moved.cpu().numpy().tobytes()

    def check_identical(self, state: Mapping[str, Tensor]) -> None:
        own = torch.stack([_fingerprint(tensor) for _, tensor in sorted(state.items())])
        # One minimum gives both ends, since min(−a) = −max(a): a member equal to both agrees with all the others.
        if not torch.equal(self.all_min(torch.cat([own, -own])), torch.cat([own, -own])):
            raise RuntimeError("the processes that train one SAE do not hold the same bits any more")

    def is_common_error(self, error: Exception) -> bool:
        """Only errors that follow from what all members hold; a full disk or memory is one member's own."""
        return type(error) in (CellFailed, InvalidInput)

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        moved = tensor.to(self.device).contiguous()  # NCCL takes only contiguous tensors in GPU memory
        _collective(dist.all_reduce, moved, operation)
        return moved.to(tensor.device)


_LOOK_SECONDS = 0.1


def meet_at_port(file: Path, rank: int, size: int, host: str, name: str, patience: float) -> MeetingPort:
    """Where processes of several machines meet: at a port that member 0 opens on `host` and writes to `file`.

    The others wait until the file is there, whoever brings it to them. `name` is of this meeting alone, so that nobody of
    an earlier one takes part. Ends the process like a lost member when nobody comes for `patience` seconds.
    """
    timeout = timedelta(seconds=patience)
    try:
        if rank == 0:
            store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=timeout)  # type: ignore[attr-defined]
            write_bytes(file, f"{host} {store.port}".encode())
        else:
            there, port = _waited_for(file, patience).split()
            store = dist.TCPStore(there, int(port), size, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    except (RuntimeError, TimeoutError) as error:  # torch's DistStoreError and DistNetworkError among them
        print(f"did not meet the other processes: {error}", file=sys.stderr, flush=True)
        raise SystemExit(LOST_PEER) from error
    met: MeetingPort = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    return met


def _waited_for(file: Path, patience: float) -> str:
    deadline = time.monotonic() + patience
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody said within {patience:g} s where to meet")
        time.sleep(_LOOK_SECONDS)
    return file.read_text("utf-8")


def _collective(operation: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Carries out a collective. When a member is gone this process ends: SystemExit passes whatever contains a cell's
    errors, because a training that has lost a member cannot go on with the next SAE either."""
    try:
        operation(*arguments, **named)
    except RuntimeError as error:
        print(f"lost the other processes: {error}", file=sys.stderr, flush=True)
        raise SystemExit(LOST_PEER) from error


def _fingerprint(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits as integers, which no order of summation changes: int64 scalar on the CPU."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64).cpu()
