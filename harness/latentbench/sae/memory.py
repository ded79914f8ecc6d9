"""Buffers that are used again every step: fresh pages for a large tensor cost as much as filling it several times."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

CHUNK = 1 << 26
"""Largest number of pre-activations, or of pairs of them, that exist at once."""
SPARE = 2
"""Gradients of one shape that are kept: an encoder's and a decoder's."""

_local = threading.local()


def rows_per_chunk(width: int) -> int:
    """For how many tokens `width` numbers each are computed at once."""
    return max(1, CHUNK // width)


def scratch(rows: int, columns: int, like: Tensor) -> Tensor:
    """A [rows, columns] buffer of `like`'s type and device, shared by all callers of a thread: read it at once."""
    key = (like.dtype, like.device)
    buffers: dict[object, Tensor] = _local.__dict__.setdefault("buffers", {})
    _local.asked = max(asked(), rows * columns * like.element_size())
    if key not in buffers or buffers[key].numel() < rows * columns:
        buffers.pop(key, None)
        buffers[key] = like.new_empty(rows * columns, requires_grad=False)
    return buffers[key][: rows * columns].view(rows, columns)


def asked() -> int:
    """Bytes of the largest buffer that the calling thread has asked for since `forget_asked`."""
    found: int = getattr(_local, "asked", 0)
    return found


def forget_asked() -> None:
    """Starts to look for the largest buffer anew."""
    _local.asked = 0


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
