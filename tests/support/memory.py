"""Models that run out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def little_memory(model: nn.Module, tokens: int) -> Iterator[None]:
    """While open, the model runs out of memory in passes over more than so many tokens."""

    def refuse(module: nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        if kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
