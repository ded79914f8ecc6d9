"""Who trains an SAE: this process alone, or a team of processes that each see their own share of every batch.

All members run the same program from the same seeds and hold the same state; only the tokens differ. What depends on the
whole batch is added up here. Every method is called by all members in the same order and gives all of them the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Team:
    """This process alone; `latentbench.sae.process_team` has the teams of several."""

    rank = 0
    """Number of this member; the first one writes what is kept."""
    size = 1
    """How many members there are."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of the members' tensors of one shape; `tensor` may be overwritten."""
        return tensor

    def lowest(self, tensor: Tensor) -> Tensor:
        """Smallest of the members' values, element by element; `tensor` may be overwritten."""
        return tensor

    def joined(self, values: Tensor) -> Tensor:
        """The members' vectors, of any length each, one after the other by rank."""
        return values

    def first(self, content: bytes) -> bytes:
        """What the first member gives."""
        return content

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError unless all members hold the same bits."""

    def shares(self, error: Exception) -> bool:
        """Whether all members meet this error alike, so that they can go on together without what it belongs to."""
        return True


ALONE = Team()


class OfTeam:
    """Part of an SAE whose training may look at the whole batch, not at each token alone."""

    team: Team = ALONE
    """Whose shares make up the batch; set by the trainer."""


def join(sae: nn.Module, team: Team) -> None:
    """Tells every part of an SAE that has to know whose shares make up the batch."""
    for part in sae.modules():
        if isinstance(part, OfTeam):
            part.team = team


def mean_of_all(values: Tensor, team: Team) -> Tensor:
    """Mean of `values` [n] over the tokens of all members, for losses that are not linear in it.

    Its gradient is that of this member's mean: weighted by tokens and added up, those are the gradient of the whole.
    """
    own = values.mean()
    if team.size == 1:
        return own
    total, tokens = team.sum(torch.stack([values.detach().sum(), own.new_tensor(len(values))]).double())
    shift: Tensor = (total / tokens).to(own) - own.detach()
    return own + shift
