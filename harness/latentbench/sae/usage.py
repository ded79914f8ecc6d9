"""How much memory the training of one SAE takes, while others and the language model share its process.

On CUDA what the allocator held at most during a step beyond what it held before, and on top what the SAE keeps between
steps: weights (those of its bases too) and Adam's moments. On the CPU, where no allocator can be asked, it is counted:
what is kept, one gradient per trained weight, every tensor that autograd saves for the backward pass, and the buffer of
pre-activations. What exists only within one operation is not: a process grows by 1.1 to 1.4 times as much for sparse
variants, 2.4 to 2.8 times for dense ones. Both leave out the hidden states themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from latentbench.sae import memory
from latentbench.sae.base import SparseAutoencoder


class Usage:
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
            used = torch.cuda.max_memory_allocated(device) - before
        else:
            saved: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in _weights(sae)}

            def note(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                saved.setdefault(storage.data_ptr(), storage.nbytes())
                return tensor.detach()  # an output that kept itself would never be freed

            memory.forget_asked()
            with saved_tensors_hooks(note, lambda tensor: tensor):
                yield
            trained = sum(_bytes(p) for group in optimizer.param_groups for p in group["params"])
            used = trained + sum(saved.values()) + memory.asked()
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
