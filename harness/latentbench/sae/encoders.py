"""Which latents are active: encoders, and the selection of the strongest latents per token or per batch (BatchTopK).

Encoders choose latents without a dense graph and return differentiable codes, non-negative but for those of AbsTopK.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from latentbench.core.errors import InvalidInput
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup, UsesProcessGroup
from latentbench.sae.autoencoder import Codes
from latentbench.sae.linear import ThresholdRule, TopKRule, linear_above
from latentbench.sae.sparse_kernels.autograd import attach, top_linear, top_magnitudes

CANDIDATE_FACTOR = 4
"""How many times the mean number of active latents a token may have before the batch is looked at again."""


class Encoder(nn.Module, ABC):
    """What a dictionary asks of its encoder. `shift` [d_in] is subtracted from `x` [N, d_in] first, where given."""

    @abstractmethod
    def top(self, x: Tensor, k: int, shift: Tensor | None) -> Codes:
        """The k strongest latents of each token, descending."""

    def top_of_batch(self, x: Tensor, total: int, shift: Tensor | None, group: ProcessGroup = SINGLE_PROCESS) -> Codes:
        """Those of the `total` strongest latents of the tokens of all the group's members together that belong to `x`.

        Raises InvalidInput where an encoder ranks the latents of one token only.
        """
        raise InvalidInput(f"{type(self).__name__} ranks the latents of every token for itself, not those of a batch")

    def above(self, x: Tensor, threshold: Tensor, shift: Tensor | None) -> Codes:
        """All latents above a threshold (scalar), without gradients. Raises InvalidInput as `top_of_batch` does."""
        raise InvalidInput(f"{type(self).__name__} ranks the latents of every token and has no threshold")

    @abstractmethod
    def some(self, x: Tensor, latents: Tensor, shift: Tensor | None) -> Tensor:
        """Dense activations [N, n] of the given latents [n]."""

    @abstractmethod
    def top_among(self, x: Tensor, latents: Tensor, k: int, shift: Tensor | None) -> Codes:
        """The k strongest of the given latents [n] of each token, descending."""

    @abstractmethod
    def initial_decoder(self) -> Tensor:
        """Decoder rows [width, d_in] of unit norm to start from."""

    @abstractmethod
    def fold_input_scale(self, scale: float) -> None:
        """From reading `scale · x` to reading x, activations divided by `scale`."""


class RowEncoder(Encoder):
    """Latents that are a function of W (x − shift) + b; W [width, d_in] starts with random unit rows, b [width] with zeros."""

    def __init__(self, d_in: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(unit_rows(torch.randn(width, d_in, generator=generator)))
        self.bias = nn.Parameter(torch.zeros(width))

    def pre_of(self, x: Tensor, latents: Tensor, shift: Tensor | None) -> Tensor:
        """Dense pre-activations [N, n] of the given latents [n]."""
        # Dense, so autograd reaches the shift by itself; only what goes through `attach` needs it detached.
        shifted = x if shift is None else x - shift
        return shifted @ self.weight[latents].t() + self.bias[latents]

    def initial_decoder(self) -> Tensor:
        return self.weight.detach().clone()

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        # W (s x − b) + c = s (W (x − b/s) + c/s): biases are divided, rows stay, and activations shrink by s.
        self.bias.div_(scale)


class LinearEncoder(RowEncoder):
    """ReLU(W (x − shift) + b)."""

    def top(self, x: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        return self._active(top_linear(x, self.weight, self.bias, k), x, shift)

    def top_of_batch(
        self, x: Tensor, total: int, shift: Tensor | None = None, group: ProcessGroup = SINGLE_PROCESS
    ) -> Codes:
        x = subtract_detached(x, shift)
        width = self.weight.shape[0]
        top = partial(top_linear, x, self.weight, self.bias)
        return self._active(top_of_batch(top, len(x), width, total, group), x, shift)

    def above(self, x: Tensor, threshold: Tensor, shift: Tensor | None = None) -> Codes:
        return linear_above(subtract_detached(x, shift), self.weight, self.bias, threshold)

    def some(self, x: Tensor, latents: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.pre_of(x, latents, shift).relu()

    def top_among(self, x: Tensor, latents: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        found = top_linear(x, self.weight[latents], self.bias[latents], k)
        return self._active(Codes(found.values, latents[found.indices]), x, shift)

    def _active(self, codes: Codes, x: Tensor, shift: Tensor | None) -> Codes:
        codes = attach(codes, x, self.weight, self.bias, shift)
        return Codes(codes.values.relu(), codes.indices)


class SignedEncoder(RowEncoder):
    """W (x − shift) + b, of which the largest magnitudes are active with their signs (AbsTopK, arXiv 2510.00404)."""

    def top(self, x: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        return attach(top_magnitudes(x, self.weight, self.bias, k), x, self.weight, self.bias, shift)

    def some(self, x: Tensor, latents: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.pre_of(x, latents, shift)

    def top_among(self, x: Tensor, latents: Tensor, k: int, shift: Tensor | None = None) -> Codes:
        x = subtract_detached(x, shift)
        found = top_magnitudes(x, self.weight[latents], self.bias[latents], k)
        return attach(Codes(found.values, latents[found.indices]), x, self.weight, self.bias, shift)


def unit_rows(weight: Tensor) -> Tensor:
    """Rows scaled to unit L2 norm."""
    rows: Tensor = weight / weight.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return rows


def subtract_detached(x: Tensor, shift: Tensor | None) -> Tensor:
    """x − shift without a gradient to the shift (`attach` gives it one)."""
    return x if shift is None else x - shift.detach()


def top_of_batch(
    top: Callable[[int], Codes], tokens: int, width: int, total: int, group: ProcessGroup = SINGLE_PROCESS
) -> Codes:
    """The `total` largest positive latents of all tokens together, descending per token, padded with zeros.

    `top(m)` gives the m largest per token, descending. If no token's m-th reaches the smallest one chosen, nothing
    outside these candidates can belong to the batch's strongest, so the choice is exact; otherwise m is raised.
    Equal values at the boundary: the earlier token, then the stronger rank wins. In a process group the batch is that of
    all members, `tokens` are this member's, and of equal values those of the member with the lower rank win.
    """
    # The batch's strongest could all be one token's; a few times the mean nearly always suffices and keeps candidates
    # few.
    m = min(width, CANDIDATE_FACTOR * -(-total // (tokens * group.size)))
    while True:
        codes = top(m)
        # Only the candidates' values travel between members, never latents or hidden states.
        bound = _smallest(group.all_gather(codes.values.detach().flatten()), total)
        short = m < width and bool((codes.values[:, -1] >= bound).any())
        # Asked in common: a member that looked again alone would wait for a collective that nobody else enters.
        if not group.all_sum(torch.tensor(int(short))):
            return _kept(codes, bound, total, group)
        m = min(width, 4 * m)


def _smallest(flat: Tensor, total: int) -> Tensor:
    """The `total`-th largest of some values [n], but at least the smallest positive number."""
    # At least the smallest positive number: latents at zero are inactive even where fewer than `total` are above it.
    tiny = flat.new_tensor(torch.finfo(flat.dtype).tiny)
    return tiny if total >= len(flat) else flat.kthvalue(len(flat) - total + 1).values.maximum(tiny)


def _kept(codes: Codes, bound: Tensor, total: int, group: ProcessGroup) -> Codes:
    above, equal = codes.values > bound, codes.values == bound
    counts = torch.zeros(group.size, 2, dtype=torch.int64, device=bound.device)
    counts[group.rank] = torch.stack([above.sum(), equal.sum()])
    counts = group.all_sum(counts)
    # What is above the bound is in; ties fill what is left, in the order of ranks and then of this member's entries.
    room = total - counts[:, 0].sum() - counts[: group.rank, 1].sum()
    ties = (equal.flatten().cumsum(0) <= room).view_as(equal)
    keep = above | (equal & ties)
    # Candidates are descending and the choice is a threshold, so each token keeps a prefix of its own.
    active = max(1, int(keep.sum(1).max()))
    return Codes(codes.values[:, :active] * keep[:, :active], codes.indices[:, :active])


class Selection(nn.Module, UsesProcessGroup, ABC):
    """Which latents are active, in training and afterwards. `shift` [d_in] or None is subtracted from `x` [N, d_in]."""

    @abstractmethod
    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None, step: int, steps: int) -> Codes:
        """Differentiable codes of the training batch number `step` of `steps`."""

    @abstractmethod
    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        """Codes of tokens that do not influence each other; at most `budget` latents each, also more than in training."""

    @abstractmethod
    def rule(self, width: int) -> TopKRule | ThresholdRule:
        """The rule of `infer` for a linear encoder of `width` latents."""

    def fold_input_scale(self, scale: float) -> None:
        """Activations are from now on divided by `scale`."""

    def settings(self) -> dict[str, float | int | str]:
        """What people may want to read."""
        return {}


class TokenSelection(Selection):
    """The k strongest latents of every token."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None, step: int, steps: int) -> Codes:
        return encoder.top(x, self.k, shift)

    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        return encoder.top(x, self.k if budget is None else budget, shift)

    def rule(self, width: int) -> TopKRule:
        return TopKRule(self.k)


SHORT_RUN = 10
"""A batch's share in the running threshold is at least this over the number of steps: the threshold then stands for about
the last tenth of a run that is too short for its momentum."""


class BatchSelection(Selection):
    """The N·k strongest latents of N tokens together (Bussmann et al. 2024, arXiv 2412.06410).

    Afterwards a global threshold takes over: the running mean of the smallest activation that was selected. A batch's share
    in it is `momentum`, or more where training is young or short, so that it always stands for the last batches and never
    for many that came before weights were what they are.
    """

    threshold: Tensor

    def __init__(self, k: int, momentum: float) -> None:
        super().__init__()
        self.k = k
        self.momentum = momentum
        # Below zero: no batch seen yet, since activations are never negative. A buffer, so that it is saved and moved.
        self.register_buffer("threshold", torch.tensor(-1.0))

    def train_on(self, encoder: Encoder, x: Tensor, shift: Tensor | None, step: int, steps: int) -> Codes:
        tokens = int(self.group.all_sum(torch.tensor(len(x))))
        codes = encoder.top_of_batch(x, tokens * self.k, shift, self.group)
        self._follow(codes.values.detach(), max(self.momentum, 1 / (step + 1), min(1.0, SHORT_RUN / steps)))
        return codes

    @property
    def followed(self) -> bool:
        """Whether the threshold has seen a batch."""
        return bool((self.threshold >= 0).all())

    @torch.no_grad()
    def _follow(self, values: Tensor, share: float) -> None:
        positive = values[values > 0]
        # The smallest of the whole batch; a member without active latents must not lower it.
        low = self.group.all_min(positive.min() if len(positive) else values.new_tensor(inf))
        if low < inf:
            # The first batch sets the threshold outright; a running mean that began at −1 would drag it for hundreds of
            # steps.
            self.threshold.lerp_(low.to(self.threshold).expand_as(self.threshold), share if self.followed else 1.0)

    def infer(self, encoder: Encoder, x: Tensor, shift: Tensor | None, budget: int | None) -> Codes:
        # Never negative: before any batch was seen everything above zero is active, as with plain ReLU.
        codes = encoder.above(x, self.threshold.clamp_min(0), shift)
        return codes if budget is None else codes.truncated(budget)

    def rule(self, width: int) -> ThresholdRule:
        return ThresholdRule(self.threshold.clamp_min(0).expand(width))

    def settings(self) -> dict[str, float | int | str]:
        return {"threshold": float(self.threshold.mean())}

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        if self.followed:
            self.threshold.div_(scale)


def selection(name: str, k: int, momentum: float) -> Selection:
    """`topk` per token or `batch_topk` over the batch."""
    return BatchSelection(k, momentum) if name == "batch_topk" else TokenSelection(k)
