"""Weights of SAEs that others saved: read without unpickling, checked, and made into one linear dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from latentbench.core.border import foreign
from latentbench.core.errors import RefusedFile
from latentbench.core.torch_files import is_held, read_archive
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.linear import ConcatenatedSAE, LatentGroup, LinearWeights, ThresholdRule, TopKRule, frozen

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises RefusedFile."""
    with foreign(f"{path.name} cannot be read as safetensors"):
        return load_file(path)


def read_torch(path: Path) -> dict[str, Tensor]:
    """All tensors of a state dict saved by `torch.save`; nothing in the file is executed.

    Raises RefusedFile for whatever torch's restricted reader does not take: classes, functions, other containers.
    """
    advice = "convert it on a machine you can afford to lose: safetensors.torch.save_file(state_dict, 'ae.safetensors')"
    state = read_archive(path, advice)
    # The reader takes any container of tensors and numbers; only a flat map of names to tensors is a state dict.
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RefusedFile(f"{path.name} holds no state dict of tensors; {advice}")
    found = {str(name): tensor for name, tensor in state.items()}
    for name, tensor in found.items():
        if not is_held(tensor):
            raise RefusedFile(f"{path.name}: {name} stands for more numbers than the file holds")
    return found


def checked(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], others: Iterable[str], where: str
) -> dict[str, Tensor]:
    """The tensors named in `shapes` in float32. `others` may stand in the file too; nothing else may.

    Raises RefusedFile for missing, unexpected, misshapen and non-finite tensors.
    """
    missing, unexpected = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys() - {*others})
    if missing or unexpected:
        raise RefusedFile(f"{where}: missing tensors {missing}, unexpected tensors {unexpected}")
    return {name: _checked(name, weights[name], shape, where) for name, shape in shapes.items()}


def dictionary(
    encoder: Tensor, bias: Tensor, decoder: Tensor, b_dec: Tensor, rule: TopKRule | ThresholdRule, *, centred: bool
) -> SparseAutoencoder:
    """x̂ = b_dec + rule(encoder (x − b_dec) + bias) · decoder; without − b_dec where not `centred`.

    encoder and decoder [width, d_in], bias [width], b_dec [d_in].
    """
    if centred:
        # In float64: the folded bias is the difference of two numbers that may be large.
        bias = (bias.double() - encoder.double() @ b_dec.double()).to(bias.dtype)
    return frozen(ConcatenatedSAE(LinearWeights((LatentGroup(encoder, bias, decoder, rule),), b_dec)))


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise RefusedFile(f"{where}: {name} is {list(tensor.shape)}, the configuration asks for {list(shape)}")
    if tensor.dtype not in _FLOATS:
        raise RefusedFile(f"{where}: {name} holds {tensor.dtype}, not floating-point numbers")
    if not torch.isfinite(tensor).all():
        raise RefusedFile(f"{where}: {name} holds NaN or infinity")
    return tensor.to(torch.float32).contiguous()
