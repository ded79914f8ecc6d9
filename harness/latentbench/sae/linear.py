"""SAEs with a linear encoder, taken apart and put together: weights, activation rules, and the codes that these give.

Sources of SAEs put their weights together here; boosting, its baselines and exports take SAEs apart. Groups of latents keep
their own activation rule, so that an SAE and the residual SAEs on top of it are exactly one dictionary with concatenated
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentbench.core.errors import InvalidInput
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.sae.memory import row_chunks
from latentbench.sae.sparse_kernels.autograd import preactivations, sparse_decode, top_linear


@dataclass(frozen=True)
class TopKRule:
    """The k strongest latents of the group, ReLU."""

    k: int


@dataclass(frozen=True)
class ThresholdRule:
    """Latents whose pre-activation exceeds max(threshold, 0)."""

    threshold: Tensor
    """[width]"""


class LatentGroup(NamedTuple):
    """Latents z = rule(W_enc x + b_enc) that read x itself and add z · W_dec."""

    W_enc: Tensor
    """[width, d_in]"""
    b_enc: Tensor
    """[width]; a subtracted decoder bias is contained in it."""
    W_dec: Tensor
    """[width, d_in]"""
    rule: TopKRule | ThresholdRule

    @property
    def width(self) -> int:
        """Number of latents."""
        return len(self.b_enc)

    def encode(self, x: Tensor) -> Codes:
        """Codes of `x` [N, d_in], without gradients."""
        if isinstance(self.rule, TopKRule):
            codes = top_linear(x, self.W_enc, self.b_enc, self.rule.k)
            # top_linear ranks pre-activations, of which a token may have fewer than k above zero.
            return Codes(codes.values.relu(), codes.indices)
        return linear_above(x, self.W_enc, self.b_enc, self.rule.threshold)


class LinearWeights(NamedTuple):
    """x̂ = b_dec + Σ over groups: the weights of an SAE with a linear encoder."""

    groups: tuple[LatentGroup, ...]
    b_dec: Tensor
    """[d_in]"""


@runtime_checkable
class SupportsLinearWeights(Protocol):
    """An SAE that can be taken apart."""

    def linear_weights(self) -> LinearWeights:
        """Its weights. Raises InvalidInput where no equivalent linear encoder exists."""


def linear_weights(sae: SparseAutoencoder) -> LinearWeights:
    """The weights of an SAE with a linear encoder. Raises InvalidInput for others."""
    if not isinstance(sae, SupportsLinearWeights):
        raise InvalidInput(f"{type(sae).__name__} has no linear encoder with top-k or threshold activation")
    return sae.linear_weights()


class ConcatenatedSAE(SparseAutoencoder):
    """One dictionary made of groups of latents. Buffers `W_enc`, `b_enc`, `W_dec`, `b_dec`, concatenated.

    Group i's thresholds, where it has them, are the buffer `threshold<i>`.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, weights: LinearWeights) -> None:
        super().__init__()
        groups = weights.groups
        for name in ("W_enc", "b_enc", "W_dec"):
            self.register_buffer(name, torch.cat([getattr(group, name) for group in groups]).detach().clone())
        self.register_buffer("b_dec", weights.b_dec.detach().clone())
        self.width, self.d_in = self.W_dec.shape
        self.ends = tuple(accumulate(group.width for group in groups))
        # Rules are no tensors: k stays outside the state, thresholds are buffers, so that `to` and saving reach them.
        self.budgets = tuple(group.rule.k if isinstance(group.rule, TopKRule) else None for group in groups)
        for number, group in enumerate(groups):
            if isinstance(group.rule, ThresholdRule):
                self.register_buffer(f"threshold{number}", group.rule.threshold.detach().clone())

    @property
    def rules(self) -> tuple[TopKRule | ThresholdRule, ...]:
        """The activation rule of every group."""
        pairs = enumerate(self.budgets)
        return tuple(ThresholdRule(getattr(self, f"threshold{i}")) if k is None else TopKRule(k) for i, k in pairs)

    def linear_weights(self) -> LinearWeights:
        """The groups, as views of the concatenated weights."""
        spans = [slice(start, end) for start, end in pairwise((0, *self.ends))]
        pairs = zip(spans, self.rules, strict=True)
        groups = tuple(LatentGroup(self.W_enc[s], self.b_enc[s], self.W_dec[s], rule) for s, rule in pairs)
        return LinearWeights(groups, self.b_dec)

    def thresholds(self) -> Tensor | None:
        """Thresholds [width] if every group has them (then this is a JumpReLU SAE), otherwise None."""
        found = [rule.threshold for rule in self.rules if isinstance(rule, ThresholdRule)]
        return torch.cat(found) if len(found) == len(self.rules) else None

    @property
    def trained_k(self) -> int | None:
        known = [k for k in self.budgets if k is not None]
        return sum(known) if len(known) == len(self.budgets) else None

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = concatenated([group.encode(x) for group in self._groups_at(budget)], self.ends)
        return codes if budget is None else codes.truncated(budget)

    def _groups_at(self, budget: int | None) -> tuple[LatentGroup, ...]:
        """The groups, with room for a budget above the k of a single one."""
        groups = self.linear_weights().groups
        if budget is None or self.trained_k is None or budget <= self.trained_k:
            return groups
        if len(groups) > 1:
            raise InvalidInput(
                f"a budget of {budget} exceeds the {self.trained_k} active latents of {len(groups)} groups, and nothing "
                "says which of them may have more; use a budget up to that"
            )
        return (groups[0]._replace(rule=TopKRule(budget)),)

    def decode(self, codes: Codes) -> Tensor:
        return sparse_decode(codes, self.W_dec, self.b_dec)

    def decoder_rows(self) -> Tensor:
        return self.W_dec


def linear_above(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Codes:
    """Entries of ReLU(weight · x + bias) above `threshold` (scalar or [width]), without gradients.

    x [N, d_in], weight [width, d_in], bias [width].
    """
    # One piece at a time: `preactivations` writes every piece to the same buffer, so it is read before the next is
    # made.
    pieces = (preactivations(x[part], weight, bias) for part in row_chunks(len(x), len(weight)))
    return Codes.joined([entries_above(pre, threshold) for pre in pieces])


def padded(rows: Tensor, columns: Tensor, values: Tensor, tokens: int) -> Codes:
    """Codes of entries (row, column, value) given in row order; rows with fewer entries are padded with zeros."""
    counts = torch.bincount(rows, minlength=tokens)
    active = max(1, int(counts.max())) if tokens else 1
    # The place of an entry within its row: its number minus the number of the row's first entry.
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    out = Codes(values.new_zeros(tokens, active), columns.new_zeros(tokens, active))
    out.values[rows, slots] = values
    out.indices[rows, slots] = columns
    return out


def entries_above(pre: Tensor, threshold: Tensor) -> Codes:
    """All positive entries of `pre` [N, width] above `threshold` (scalar or [width]), in latent order."""
    rows, columns = ((pre > threshold) & (pre > 0)).nonzero(as_tuple=True)
    return padded(rows, columns, pre[rows, columns], len(pre))


def concatenated(parts: list[Codes], ends: tuple[int, ...]) -> Codes:
    """Codes of the same tokens in one dictionary; part i's latents end at `ends[i]`."""
    # The last end starts no part, hence no strict zip.
    shifted = [part.indices + start for part, start in zip(parts, (0, *ends), strict=False)]
    return Codes(torch.cat([part.values for part in parts], dim=1), torch.cat(shifted, dim=1))


def folded_bias(weight: Tensor, bias: Tensor, shift: Tensor | None) -> Tensor:
    """b − W shift: the encoder bias [width] that reads x where the SAE read x − shift."""
    return bias if shift is None else bias - weight @ shift


def frozen(sae: SparseAutoencoder) -> SparseAutoencoder:
    """`sae` in evaluation mode without gradients."""
    nn.Module.requires_grad_(sae, False)
    return sae.eval()
