"""Files that `torch.save` wrote, read without running anything in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentbench.core.border import foreign
from latentbench.core.errors import RefusedFile


def read_archive(path: Path, advice: str = "") -> Any:
    """What torch's restricted reader takes: tensors and numbers in maps, lists and tuples.

    Raises RefusedFile for whatever it does not take (classes, functions), and for what it would have to unpickle before it
    knows: anything compressed or older than the archives that torch ≥ 1.6 writes.
    """
    if not _is_archive(path):
        end = f"; {advice}" if advice else ""
        raise RefusedFile(
            f"{path.name} is no file in the format of torch ≥ 1.6, so it was not read and not unpickled{end}"
        )
    with foreign(f"{path.name} holds more than tensors, or is damaged, and was not unpickled", advice):
        return torch.load(path, map_location="cpu", weights_only=True)


def is_held(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor stand in the file, plainly: a stride of zero turns a few bytes into any number of
    elements, and a tensor of the meta device has a shape and nothing else."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
