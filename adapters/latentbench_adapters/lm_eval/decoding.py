"""How tokens are drawn and when a row ends, per row, so that an answer does not depend on what it is batched with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from latentbench.steering.stops import Stops


class SeededSampling(LogitsProcessor):
    """Draws from softmax(logits / temperature) by inverting its distribution function at one uniform per row and step.

    The uniforms of a row come from a seed of its own. Two models that are given the same seeds are therefore compared
    with common random numbers, and a row's answer does not change with its neighbours, the device's generator or what
    was drawn before. The rest of decoding is told to be greedy: every score but the drawn token's is −∞.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, prompt: int, steps: int) -> None:
        self._temperature, self._prompt = temperature, prompt
        self._uniforms = torch.stack([_uniforms(seed, steps) for seed in seeds], dim=1)  # [steps, B] float64

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`input_ids` [B, T], `scores` [B, vocabulary]; returns scores of the same shape."""
        uniform = self._uniforms[input_ids.shape[1] - self._prompt].to(scores.device)
        reached = torch.softmax(scores.float() / self._temperature, -1).double().cumsum(-1)
        # A point just below the total keeps the last token with any probability the last that can be drawn.
        point = (uniform[:, None] * reached[:, -1:]).clamp_max(reached[:, -1:] * (1 - 1e-12))
        drawn = torch.searchsorted(reached, point, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)


def _uniforms(seed: int, steps: int) -> Tensor:
    # On the CPU whatever the device, whose generators differ.
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its generated text holds one of the strings, also where no token border meets theirs."""

    def __init__(self, stops: Stops, prompt: int, rows: int) -> None:
        self.ended: list[int | None] = [None] * rows
        """Tokens a row had generated when a string was found in it."""
        self._stops, self._prompt = stops, prompt

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """[B] bool of `input_ids` [B, T]."""
        going = [row for row, length in enumerate(self.ended) if length is None]
        recent = input_ids[going, max(self._prompt, input_ids.shape[1] - self._stops.window) :]
        found = self._stops.found(recent.tolist())
        for row, holds in zip(going, found, strict=True):
            if holds:
                self.ended[row] = input_ids.shape[1] - self._prompt
        return torch.tensor([length is not None for length in self.ended], device=input_ids.device)
