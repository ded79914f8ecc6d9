"""Sparse latents: the k active of `width`, never a dense [tokens, width] tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Codes(NamedTuple):
    """Active latents of N tokens, at most A each. An entry whose value is zero is padding."""

    values: Tensor
    """[N, A] activations; sorted descending where the variant's budget order matters."""
    indices: Tensor
    """[N, A] int64 latent numbers in 0..width-1."""

    @staticmethod
    def empty(tokens: int, active: int, like: Tensor) -> Codes:
        """Room for codes [tokens, active] of `like`'s type and device, to be written to."""
        indices = torch.empty(tokens, active, dtype=torch.int64, device=like.device)
        return Codes(like.new_empty(tokens, active, requires_grad=False), indices)

    @staticmethod
    def from_dense(latents: Tensor) -> Codes:
        """The non-zero entries of dense latents [N, width], strongest first, A = the largest L0 of the batch."""
        active = max(1, int((latents != 0).sum(-1).max())) if latents.numel() else 1
        _, indices = latents.abs().topk(active, dim=-1)
        return Codes(latents.gather(-1, indices), indices)

    @staticmethod
    def joined(parts: list[Codes]) -> Codes:
        """Codes of consecutive tokens, padded with zeros to the largest number of entries."""
        active = max(part.values.shape[1] for part in parts)
        pads = [(0, active - part.values.shape[1]) for part in parts]
        values = [pad(part.values, p) for part, p in zip(parts, pads, strict=True)]
        indices = [pad(part.indices, p) for part, p in zip(parts, pads, strict=True)]
        return Codes(torch.cat(values), torch.cat(indices))

    @property
    def l0(self) -> Tensor:
        """[N] number of active latents per token."""
        return (self.values != 0).sum(-1)

    def dense(self, width: int) -> Tensor:
        """The dense latents [N, width]; for tests and small widths only."""
        out = self.values.new_zeros(self.values.shape[0], width)
        return out.scatter_add_(1, self.indices, self.values)

    def truncated(self, budget: int) -> Codes:
        """Only the `budget` strongest latents of each token."""
        if budget >= self.values.shape[1]:
            return self
        values, order = self.values.topk(budget, dim=1)
        return Codes(values, self.indices.gather(1, order))

    def firing_counts(self, width: int) -> Tensor:
        """[width] int64: on how many of the N tokens each latent is active."""
        return torch.bincount(self.indices[self.values != 0], minlength=width)
