"""Whether two implementations of the sparse products agree; asked once per CUDA device, before training."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.sae.backends.base import Backend

TOKENS, ACTIVE, WIDTH, D = 9, 7, 20, 33
"""More entries than `triton_ops.HELD` and no powers of two."""
TOLERANCE = 1e-2
"""Far above float32 rounding, and above that of the TF32 products which people may have allowed."""


def agree(own: Backend, other: Backend, device: torch.device) -> bool:
    """Whether all products of a small problem with padding come out the same on `device` in float32."""
    pairs = zip(_products(own, device), _products(other, device), strict=True)
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)


def _products(backend: Backend, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(TOKENS, ACTIVE, generator=generator).relu().to(device)
    indices = torch.randint(0, WIDTH, (TOKENS, ACTIVE), generator=generator).to(device)
    weight, x = (torch.randn(rows, D, generator=generator).to(device) for rows in (WIDTH, TOKENS))
    shares = torch.rand(1, ACTIVE + 1, generator=generator).to(device)
    reconstruction = torch.zeros_like(x)
    losses = backend.prefix_losses(values, indices, weight, x, shares, reconstruction)
    return [
        backend.decode(values, indices, weight),
        *backend.decode_backward(values, indices, weight, x),
        *backend.encode_backward(values, indices, x, WIDTH),
        losses,
        *backend.prefix_backward(values, indices, weight, x, shares, reconstruction),
    ]
