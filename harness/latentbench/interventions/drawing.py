"""Drawing tokens, each from a number that belongs to its row and place, so that it does not matter what else is written.

The token is where the cumulated probabilities pass the number: softmax(logits / temperature), to the rounding of float32.
One number is drawn for a token and not one for every word of the vocabulary, which for small models costs more than the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.core.errors import CellFailed

_BLOCK = 256
"""Words whose probabilities are added up before they are cumulated."""
_AT_ONCE = 1 << 20
"""Logits that are worked on at a time on a CPU: as many as its caches hold."""
_BELOW_ONE = 1 - 2.0**-52


def drawn(logits: Tensor, temperature: float, numbers: Tensor) -> Tensor:
    """Tokens [B, 1] from logits [B, vocabulary] and numbers [B] float64 in [0, 1); the most likely at temperature 0.

    Raises CellFailed where the logits are no numbers.
    """
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    rows = max(1, _AT_ONCE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    pieces = zip(torch.split(logits, rows), torch.split(numbers, rows), strict=True)
    return torch.cat([_inverse(some.float() / temperature, those) for some, those in pieces])


def _inverse(logits: Tensor, numbers: Tensor) -> Tensor:
    """[B, 1] the first word of whose cumulated weights the number's share of the total is less."""
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    weights = torch.nn.functional.pad(weights, (0, -weights.shape[1] % _BLOCK)).view(len(logits), -1, _BLOCK)
    sums = weights.sum(-1).double().cumsum(-1)
    if not sums[:, -1].isfinite().all():
        raise CellFailed("no token can be drawn: the model's logits are not all numbers")
    block, before = _passed(sums, numbers * sums[:, -1])
    within = weights[torch.arange(len(logits), device=logits.device), block].double().cumsum(-1)
    word, _ = _passed(within, numbers * sums[:, -1] - before)
    return (block * _BLOCK + word)[:, None]


def _passed(cumulated: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """For each row [B, n] of ascending sums the place where they pass `at` [B], and the sum before it."""
    # Not the total itself, which rounding may reach, and behind which there are only words of weight 0.
    place = torch.searchsorted(cumulated, at.minimum(cumulated[:, -1] * _BELOW_ONE)[:, None], right=True)
    before = cumulated.gather(1, (place - 1).clamp_min(0)) * (place > 0)
    return place[:, 0], before[:, 0]
