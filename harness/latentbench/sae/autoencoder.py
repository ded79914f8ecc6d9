"""What every SAE is, native or loaded, trained or a control: `encode` to sparse codes, `decode` to hidden states.

Codes hold the k active of `width` latents, never a dense [tokens, width] tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import sha256
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from latentbench.distributed.process_group import UsesProcessGroup


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
        # By magnitude: the latents of some loaded SAEs may be negative.
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

    def spread(self, kept: Tensor) -> Codes:
        """The codes of all M tokens of `kept` [M] bool, which is True at these N: nothing is active on the others."""
        values = self.values.new_zeros(len(kept), self.values.shape[1])
        indices = self.indices.new_zeros(values.shape)
        values[kept], indices[kept] = self.values, self.indices
        return Codes(values, indices)

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
        # Not a slice: codes need not be sorted, and padding may stand before entries. By magnitude: they may be signed.
        order = self.values.abs().topk(budget, dim=1).indices
        return Codes(self.values.gather(1, order), self.indices.gather(1, order))

    def firing_counts(self, width: int) -> Tensor:
        """[width] int64: on how many of the N tokens each latent is active."""
        return torch.bincount(self.indices[self.values != 0], minlength=width)


class SparseAutoencoder(nn.Module, ABC):
    """A dictionary of `width` latents over hidden states of `d_in` dimensions.

    Reads and writes hidden states as the model produces them: any input scaling used in training has been folded
    into the weights.
    """

    paired: ClassVar[bool] = False
    """Whether it is a transcoder, which reads both sides of an MLP (`latentbench.core.sites.PAIR`)."""
    d_in: int
    width: int

    @abstractmethod
    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        """Codes of hidden states `x` [N, d_in]; `budget` limits the active latents per token (None: as trained)."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Reconstruction [N, d_in] from codes."""

    def reconstruct(self, x: Tensor, codes: Codes) -> Tensor:
        """Reconstruction [N, d_in] from codes and from the hidden states [N, d_in] that they are of.

        The latter count for a transcoder alone, which may have a path beside its latents.
        """
        return self.decode(codes)

    def compared(self, x: Tensor) -> Tensor:
        """What reconstructions of `x` are compared with [N, d_in]: x itself, but for a transcoder."""
        return x

    def decoder_rows(self) -> Tensor | None:
        """Dictionary atoms [width, d_in], or None where there is no dictionary (identity)."""
        return None

    @property
    def trained_k(self) -> int | None:
        """Active latents of every token in training, where their number is fixed; a budget may be larger."""
        return None

    def settings(self) -> dict[str, float | int | str]:
        """Scalars learned or fixed in training, for people to read (e.g. a threshold); weights hold them exactly."""
        return {}

    @property
    def bases(self) -> tuple[SparseAutoencoder, ...]:
        """The frozen SAEs it needs beside its own weights."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction [N, d_in] of hidden states [N, d_in]."""
        return self.reconstruct(x, self.encode(x))


class TrainingLoss(NamedTuple):
    """One training step's loss and what it selected."""

    total: Tensor
    """Scalar that is differentiated."""
    reconstruction: Tensor
    """Scalar: mean over tokens of the squared error summed over dimensions."""
    auxiliary: Tensor
    """Scalar: dead-latent (AuxK), L1, L0 or other penalty, already weighted."""
    firing: Tensor
    """[width] int64: on how many of the batch's tokens each latent was active; for L0 and dead-latent bookkeeping."""


class TrainableSAE(SparseAutoencoder, UsesProcessGroup):
    """A native variant: knows its training loss."""

    uses_kernels: ClassVar[bool] = False
    """Whether the sparse products' backends compute its steps; False: autograd alone does."""

    def begin(self, mean: Tensor, scale: float) -> None:
        """Called once before the first step. `mean` [d_in] is the mean hidden state as the model produces it;
        the trainer will feed `scale · x`."""

    @abstractmethod
    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        """Training loss on (scaled) hidden states `x` [N, d_in]; in a process group this member's share of the batch.

        `dead` is a bool mask [width] of latents that have not fired for the configured number of tokens; `step` of
        `steps` lets a penalty warm up. Means over tokens are right as they are, since the trainer weights
        every member by its tokens; whatever else depends on the whole batch is taken over `self.group`.
        """

    @torch.no_grad()
    def decay_weights(self, share: float) -> None:
        """Called before every optimiser step of a run with weight decay: takes this share off all weights that learn."""
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 - share)

    def after_step(self) -> None:
        """Called after every optimiser step, e.g. to keep decoder rows at unit norm."""

    @abstractmethod
    def fold_input_scale(self, scale: float) -> None:
        """Turn an SAE trained on `scale · x` into one that reads and writes `x`, in place."""


def weights_digest(sae: SparseAutoencoder) -> str:
    """sha256 over names, types, shapes and bytes of an SAE's weights, and those of its bases."""
    # Sorted by name, types and shapes included: two SAEs with the same bytes in other tensors are not the same.
    total = sha256("".join(map(weights_digest, sae.bases)).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
