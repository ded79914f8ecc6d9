"""What is done to hidden states at one place: adding a vector, projecting out directions, at the length that was there or not.

A change is a function of the hidden states that arrive and of the strength at each token. Products of hidden states are
computed in float32 at least and rounded once; tokens of strength 0 keep every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.places import EVERYWHERE, Places

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden states [B, T, d], strength [B, T], 0 where nothing is to be changed) → (what is left there, which tokens were changed
[B, T] bool)."""


class Condition(Protocol):
    """What says at every token whether it is to be changed, from its hidden state at a place of its own."""

    @property
    def site(self) -> Site:
        """Where it reads."""

    @property
    def identity(self) -> Json:
        """What tells it from every other condition."""

    def holds(self, hidden: Tensor) -> Tensor:
        """[B, T] bool of hidden states [B, T, d] as they arrive at `site`."""


@dataclass(frozen=True)
class Use:
    """How a change is used besides its scale and scope."""

    places: Places = EVERYWHERE
    """Which tokens of the scope."""
    keeps_length: bool = False
    """Whether what is left is rescaled to the length that the hidden state had."""
    condition: Condition | None = None
    """Where it does not hold, nothing is changed."""

    @property
    def identity(self) -> dict[str, Json]:
        """What is asked for; nothing for plain use, so that what was kept of that is found again."""
        asked: dict[str, Json] = {"places": self.places.identity} if self.places != EVERYWHERE else {}
        asked |= {"norm": "kept"} if self.keeps_length else {}
        return asked | ({"when": self.condition.identity} if self.condition else {})

    @property
    def adds(self) -> bool:
        """Whether a vector used like this is added whatever it finds."""
        return not self.keeps_length and self.condition is None

    def change(self, change: Change) -> Change:
        """`change` in the form asked for."""
        return _at_the_same_length(change) if self.keeps_length else change


PLAIN = Use()
"""Every token in scope, as it comes."""


def adding(delta: Tensor) -> Change:
    """h ← h + strength · Δ of `delta` [d]; gradients flow into it."""

    def change(hidden: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        # A sum with a masked Δ and no assignment to the chosen tokens: in place, autograd would lose h.
        steered = hidden + strength[..., None].to(hidden.dtype) * delta.to(hidden.dtype)
        return steered, strength.bool()

    return change


def projecting_out(basis: Tensor, scale: float = 1.0) -> Change:
    """h ← h − scale · strength · Qᵀ Q h for the orthonormal rows Q of `basis` [k, d]."""

    def change(hidden: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        wide = widened(hidden)
        rows = basis.to(wide.dtype)
        left = wide - scale * strength[..., None].to(wide.dtype) * ((wide @ rows.T) @ rows)
        return where_strong(strength, left, hidden), strength.bool()

    return change


def widened(hidden: Tensor) -> Tensor:
    """Hidden states in float32 at least."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def where_strong(strength: Tensor, changed: Tensor, hidden: Tensor) -> Tensor:
    """`changed` [B, T, d] in the type of `hidden`, and `hidden` itself at tokens of strength 0."""
    return torch.where(strength.bool()[..., None], changed.to(hidden.dtype), hidden)


def _at_the_same_length(inner: Change) -> Change:
    def change(hidden: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        wide = widened(hidden)
        left, changed = inner(wide, strength)
        before, after = (torch.linalg.vector_norm(states, dim=-1, keepdim=True) for states in (wide, left))
        # What a change leaves at length 0 has no direction to be lengthened in.
        rescaled = left * torch.where(after > 0, before / after.clamp_min(1e-30), torch.ones_like(after))
        return where_strong(changed, rescaled, hidden), changed

    return change
