"""Memory of training: buffers that are used again every step, and how much the training of one SAE takes.

Fresh pages for a large tensor cost as much as filling it several times.

What one SAE takes is told apart from the others and the language model in its process. On CUDA it is what the allocator
held at most during a step beyond what it held before, and on top what the SAE keeps between steps: weights (those of its
bases too) and Adam's moments. On the CPU, where no allocator can be asked, it is counted: what is kept, one gradient per
trained weight, every tensor that autograd saves for the backward pass, and the buffers of pre-activations. What exists only
within one operation is not: a process grows by 1.1 to 1.4 times as much for sparse variants, 2.4 to 2.8 times for dense
ones. Both leave out the hidden states themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from latentbench.sae.autoencoder import SparseAutoencoder

CHUNK = 1 << 26
"""Largest number of pre-activations, or of pairs of them, that exist at once."""
SPARE = 2
"""Gradients of one shape that are kept: an encoder's and a decoder's."""

_local = threading.local()


def row_chunks(rows: int, width: int, most: int | None = None) -> Iterator[slice]:
    """Slices that cut `rows` tokens into pieces for which `width` numbers each are computed at once, `most` (CHUNK) numbers
    altogether; one for no tokens."""
    step = max(1, (most or CHUNK) // width)
    return (slice(start, start + step) for start in range(0, max(1, rows), step))


def scratch(rows: int, columns: int, like: Tensor, use: str = "pre-activations") -> Tensor:
    """A [rows, columns] buffer of `like`'s type and device, shared by all callers of a thread for that use: read it at
    once."""
    # One buffer per type and device serves all shapes: a chunk of another size is a view of the largest so far.
    key = (use, like.dtype, like.device)
    buffers: dict[object, Tensor] = _local.__dict__.setdefault("buffers", {})
    largest: dict[object, int] = _local.__dict__.setdefault("asked", {})
    largest[key] = max(largest.get(key, 0), rows * columns * like.element_size())
    if key not in buffers or buffers[key].numel() < rows * columns:
        # Let go before the larger one is made, so that both never exist together.
        buffers.pop(key, None)
        buffers[key] = like.new_empty(rows * columns, requires_grad=False)
    return buffers[key][: rows * columns].view(rows, columns)


def asked() -> int:
    """Bytes of the largest buffers that the calling thread has asked for since `forget_asked`, one for each use and type."""
    found: dict[object, int] = getattr(_local, "asked", {})
    return sum(found.values())


def forget_asked() -> None:
    """Starts to look for the largest buffers anew."""
    _local.asked = {}


class GradientPool:
    """Gradient tensors between one optimiser step and the next backward pass.

    Ownership is explicit: `take` hands a tensor out for good, `give` brings one back that nobody else holds.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[object, ...], list[Tensor]] = {}

    def take(self, rows: int, columns: int, *, like: Tensor) -> Tensor:
        """An uninitialised [rows, columns] tensor of `like`'s type and device."""
        free = self._free.get((rows, columns, like.dtype, like.device))
        return free.pop() if free else torch.empty(rows, columns, dtype=like.dtype, device=like.device)

    def give(self, gradient: Tensor) -> None:
        """Takes back a gradient whose only owner is the caller; it must not be used afterwards."""
        if gradient.dim() == 2 and gradient.is_contiguous():
            key = (*gradient.shape, gradient.dtype, gradient.device)
            spare = self._free.setdefault(key, [])
            if len(spare) < SPARE:  # variants that never take one must not fill the memory
                spare.append(gradient)

    def __len__(self) -> int:
        return sum(map(len, self._free.values()))

    def clear(self) -> None:
        """Frees all memory."""
        self._free.clear()


gradients = GradientPool()


def release() -> None:
    """Frees the calling thread's scratch buffers and all spare gradients."""
    _local.__dict__.clear()
    gradients.clear()


class MemoryUsage:
    """The most memory that any of the steps looked at needed."""

    def __init__(self) -> None:
        self.peak = 0

    @contextmanager
    def of_step(self, sae: SparseAutoencoder, optimizer: Optimizer, device: torch.device) -> Iterator[None]:
        """Looks at what happens within it."""
        kept = sum(map(_bytes, _weights(sae))) + sum(map(_bytes, _moments(optimizer)))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            yield
            # The peak is the process's: what the model and other SAEs hold was there before the step and is subtracted.
            used = torch.cuda.max_memory_allocated(device) - before
        else:
            # By storage, so that views count once; weights are counted as kept already and weigh nothing here.
            saved: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in _weights(sae)}

            def note(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                saved.setdefault(storage.data_ptr(), storage.nbytes())
                return tensor.detach()  # an output that kept itself would never be freed

            forget_asked()
            with saved_tensors_hooks(note, lambda tensor: tensor):
                yield
            trained = sum(_bytes(p) for group in optimizer.param_groups for p in group["params"])
            used = trained + sum(saved.values()) + asked()
        self.peak = max(self.peak, kept + used)


def _weights(sae: SparseAutoencoder) -> Iterator[Tensor]:
    yield from chain(sae.parameters(), sae.buffers())
    for base in sae.bases:
        yield from _weights(base)


def _moments(optimizer: Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
