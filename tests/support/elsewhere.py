"""Tensors that say they are on another device and compute here: whatever mixes two devices falls, as it would on a GPU.

`with elsewhere():` tensors that are made on or moved to `ELSEWHERE` are wrappers around tensors of the CPU. An operation on one of
them and on a plain tensor raises, but for what CUDA takes from a CPU: single numbers, indices, and copies between the two. It is
torch's device `meta` under another meaning, since autograd needs no hardware for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import adam, optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")
CPU = torch.device("cpu")
COPIES = ("copy_", "_to_copy")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


class Elsewhere(Tensor):
    """A tensor of the CPU that says it is elsewhere."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        shape: dict[str, Any] = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        made: Any = Tensor._make_wrapper_subclass(cls, here.shape, **shape, dtype=here.dtype, device=ELSEWHERE)
        made.here = here
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def brought(value: Any) -> Any:
    """The tensor of the CPU behind one that is elsewhere; anything else as it is."""
    return value.here if isinstance(value, Elsewhere) else value


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Computes here, and gives the result to where the operation says or its arguments are."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    away = [value for value in given if isinstance(value, Elsewhere)]
    _check(func, args, given, away)
    device = kwargs.get("device")
    goes_away = bool(away) if device is None else torch.device(device).type == ELSEWHERE.type
    # What an operation writes in place, or to `out`, comes back as the object that it was given.
    same = {id(value.here): value for value in away}

    def sent(value: Any) -> Any:
        # A sparse tensor has no strides to wrap; it stays within the product that it is made for.
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return value
        if id(value) in same:
            return same[id(value)]
        return Elsewhere(value) if goes_away else value

    def local(value: Any) -> Any:
        return CPU if isinstance(value, torch.device) else brought(value)

    return tree_map(sent, func(*tree_map(local, args), **tree_map(local, kwargs)))


def _check(func: Any, args: Any, given: list[Tensor], away: list[Elsewhere]) -> None:
    name = func._schema.name.split("::")[1]
    near = [
        value for value in given if not isinstance(value, Elsewhere) and value.dim() and value.layout == torch.strided
    ]
    if not away or not near or name in COPIES:
        return
    if (
        name in INDEXED
        and isinstance(args[0], Elsewhere)
        and all(isinstance(v, Elsewhere) or not v.dim() for v in args[2:3])
    ):
        return  # CUDA takes indices from the CPU
    raise RuntimeError(
        f"{func} gets tensors of two devices: {[(type(value).__name__, list(value.shape)) for value in given]}"
    )


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within it `ELSEWHERE` is a device that computes."""
    new, tensor, tolist, fused = (
        Tensor.new_tensor,
        torch.tensor,
        Tensor.tolist,
        _foreach_utils._get_fused_kernels_supported_devices,
    )

    # What torch builds of Python's numbers does not pass through the mode, and lists of subclasses it refuses.
    def new_tensor(self: Tensor, data: Any, **options: Any) -> Tensor:
        if isinstance(self, Elsewhere) and "device" not in options:
            return Elsewhere(tensor(data, dtype=options.get("dtype", self.dtype)))
        return new(self, data, **options)

    def made(data: Any, **options: Any) -> Tensor:
        device = options.pop("device", None)
        found = tensor(data, **options)
        return found if device is None else found.to(device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "new_tensor", new_tensor)
        patch.setattr(torch, "tensor", made)
        patch.setattr(Tensor, "tolist", lambda self: tolist(brought(self)))
        for module in (_foreach_utils, optimizer, adam):  # as on a GPU, Adam is fused
            if hasattr(module, "_get_fused_kernels_supported_devices"):
                patch.setattr(module, "_get_fused_kernels_supported_devices", lambda: [*fused(), ELSEWHERE.type])
        with _Mode():
            yield
