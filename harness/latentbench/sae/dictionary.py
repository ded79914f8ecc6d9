"""The dictionary SAE that native variants are made of: encoder × selection × objective, plus AuxK for dead latents."""

from __future__ import annotations

from abc import abstractmethod
from math import log2
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from latentbench.core.errors import InvalidInput
from latentbench.distributed.process_group import squared_spread
from latentbench.sae.autoencoder import Codes, TrainableSAE, TrainingLoss
from latentbench.sae.encoders import Encoder, LinearEncoder, Selection
from latentbench.sae.linear import LatentGroup, LinearWeights, TopKRule, folded_bias
from latentbench.sae.options.base import AuxiliaryLoss
from latentbench.sae.sparse_kernels.autograd import sparse_decode

DENSE_AUXK_FACTOR = 16
"""Up to so many times `aux_k` dead latents are all computed with a graph, which is quicker there: of 2-core steps at
d = 64 to 768 the sparse way took 0.7 to 3.3 times as long up to it and 0.5 to 0.65 times beyond."""


class Fit(NamedTuple):
    """How well codes reconstruct a batch."""

    loss: Tensor
    """Scalar: mean over tokens of the squared error summed over dimensions (averaged over budgets or prefixes)."""
    error: Tensor
    """[N, d_in] x − reconstruction from all active latents, without gradients."""


class Objective(Protocol):
    """What the reconstruction loss sums over."""

    def __call__(self, codes: Codes, decoder: Tensor, bias: Tensor | None, x: Tensor) -> Fit:
        """Fit of `codes` to `x` [N, d_in] with `decoder` [width, d_in] and `bias` [d_in] or None."""


def squared_error(codes: Codes, decoder: Tensor, bias: Tensor | None, x: Tensor) -> Fit:
    """The plain objective: ‖x − x̂‖²."""
    error = x - sparse_decode(codes, decoder, bias)
    # The error is AuxK's target: dead latents shall learn it, not change it.
    return Fit(error.pow(2).sum() / len(x), error.detach())


class DictionarySAE(TrainableSAE):
    """x̂ = b_dec + Σ z_i W_dec[i]; subclasses choose the codes z and the training loss.

    Parameters: `W_dec` [width, d_in], `b_dec` [d_in].
    """

    def __init__(self, decoder: Tensor) -> None:
        super().__init__()
        self.width, self.d_in = decoder.shape
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(torch.zeros(self.d_in))

    @torch.no_grad()
    def begin(self, mean: Tensor, scale: float) -> None:
        """Starts `b_dec` at the mean hidden state."""
        self.b_dec.copy_(mean * scale)

    def decode(self, codes: Codes) -> Tensor:
        return sparse_decode(codes, self.W_dec, self.b_dec)

    def decoder_rows(self) -> Tensor:
        return self.W_dec

    @abstractmethod
    def fold_input_scale(self, scale: float) -> None:
        """Divides activations and biases by `scale`; decoder rows keep their norm."""


class SparseDictionarySAE(DictionarySAE):
    """A dictionary whose latents are selected by rank: gradients touch only the selected ones.

    Reads x − b_dec where `centred`, otherwise x.
    """

    uses_kernels = True
    centred = True

    def __init__(
        self, options: AuxiliaryLoss, encoder: Encoder, decoder: Tensor, selection: Selection, objective: Objective
    ) -> None:
        super().__init__(decoder)
        self.encoder = encoder
        self.selection = selection
        self.objective = objective
        self.aux_coefficient = options.aux_coefficient
        self.aux_k = options.aux_k or default_aux_k(self.d_in)
        self.aux_normalised = options.aux_loss == "normalised"

    def settings(self) -> dict[str, float | int | str]:
        return self.selection.settings()

    @property
    def shift(self) -> Tensor | None:
        """What is subtracted from the hidden state before encoding [d_in]."""
        return self.b_dec if self.centred else None

    @property
    def trained_k(self) -> int | None:
        rule = self.selection.rule(self.width)
        return rule.k if isinstance(rule, TopKRule) else None

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        if budget is not None and budget > self.width:
            raise InvalidInput(f"a budget of {budget} active latents cannot exceed the dictionary width {self.width}")
        return self.selection.infer(self.encoder, x, self.shift, budget)

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        return self.loss_on(x, x, dead, step, steps)

    def loss_on(self, x: Tensor, target: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        """The loss of reconstructing `target` [N, d_in] from `x` [N, d_in]; see `loss`."""
        codes = self.selection.train_on(self.encoder, x, self.shift, step, steps)
        fit = self.objective(codes, self.W_dec, self.b_dec, target)
        auxiliary = self.revival(x, target, fit.error, dead)
        return TrainingLoss(
            fit.loss + auxiliary, fit.loss.detach(), auxiliary.detach(), codes.firing_counts(self.width)
        )

    def revival(self, x: Tensor, target: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """AuxK with its weight, for what is left [N, d_in] of the target [N, d_in]: a scalar."""
        found = self.aux_coefficient * self.auxiliary(x, error, dead)
        return found * self._relative_spread(target.detach(), error) if self.aux_normalised else found

    def linear_weights(self) -> LinearWeights:
        """The weights with a linear encoder that reads x. Raises InvalidInput for other encoders."""
        if not isinstance(self.encoder, LinearEncoder):
            raise InvalidInput(f"{type(self).__name__} has no equivalent linear encoder")
        weight, bias = self.encoder.weight, self.encoder.bias
        group = LatentGroup(weight, folded_bias(weight, bias, self.shift), self.W_dec, self.selection.rule(self.width))
        return LinearWeights((group,), self.b_dec)

    def auxiliary(self, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """AuxK: ‖e − ê‖² where ê are the `aux_k` strongest dead latents' atoms (Gao et al. 2024, App. A.2)."""
        latents = dead.nonzero().squeeze(1)
        if not len(latents) or not self.aux_coefficient:
            return x.new_zeros(())
        revived = self._revived if len(latents) <= DENSE_AUXK_FACTOR * self.aux_k else self._sparsely_revived
        return (error - revived(x, latents)).pow(2).sum() / len(x)

    def _relative_spread(self, target: Tensor, error: Tensor) -> Tensor:
        """Variance of the target over that of the error, over the whole batch; 0 where nothing is left to learn."""
        tokens = int(self.group.all_sum(torch.tensor(len(target))))
        whole, left = (squared_spread(part, tokens, self.group) for part in (target, error))
        return torch.where(left > 0, whole / left, 0)

    def _revived(self, x: Tensor, latents: Tensor) -> Tensor:
        """ê [N, d_in] from the strongest of the dead latents [n], of which all have activations with gradients."""
        # All tokens' pre-activations of all dead latents in one dense product: see DENSE_AUXK_FACTOR.
        active = self.encoder.some(x, latents, self.shift)
        if len(latents) > self.aux_k:
            # A mask keeps the graph dense but lets gradients through the strongest alone, as in the sparse way.
            kept = active.detach().abs().topk(self.aux_k, dim=1, sorted=False).indices
            active = active * torch.zeros_like(active).scatter_(1, kept, 1)
        return active @ self.W_dec[latents]

    def _sparsely_revived(self, x: Tensor, latents: Tensor) -> Tensor:
        """The same where nothing [N, n] has a graph: gradients touch the strongest only."""
        codes = self.encoder.top_among(x, latents, min(self.aux_k, len(latents)), self.shift)
        # No bias: the error that ê approximates has it subtracted already.
        return sparse_decode(codes, self.W_dec)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        self.encoder.fold_input_scale(scale)
        self.b_dec.div_(scale)
        self.selection.fold_input_scale(scale)


def default_aux_k(d_in: int) -> int:
    """The power of two nearest to d_in / 2, at most 512 (Gao et al. 2024)."""
    return int(min(512, 2 ** round(log2(max(1, d_in / 2)))))
