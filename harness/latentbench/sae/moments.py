"""Controls that are computed, not trained: moments of the hidden states are gathered from the same stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from latentbench.activations.site import Site
from latentbench.errors import CellFailed, RefusedFile
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.team import ALONE, Team
from latentbench.sae.train import Pace


class Moments(NamedTuple):
    """Mean [d_in] and covariance [d_in, d_in] of hidden states, in float64."""

    mean: Tensor
    covariance: Tensor


class FittedSAE(SparseAutoencoder):
    """A control that is made from moments."""

    @abstractmethod
    def fit(self, moments: Moments) -> None:
        """Sets the weights."""


class FittedTrainee:
    """Gathers moments in float64 and fits a control at the end. The sums of a team are those of its members together."""

    def __init__(self, sae: FittedSAE, site: Site, device: torch.device | None = None, team: Team = ALONE) -> None:
        self.sae, self.site, self.next_block = sae.to(device), site, 0
        self.pace, self.team = Pace(), team
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
        self.products = torch.zeros(sae.d_in, sae.d_in, dtype=torch.float64, device=device)

    def step(self, x: Tensor) -> None:
        """Adds hidden states `x` [n, d_in]. Raises CellFailed when they are not finite."""
        x = x.double()
        if self.team.sum((~torch.isfinite(x)).sum()):
            raise CellFailed("the hidden states hold NaN or infinity; try dtype: float32 for the model")
        self.count += len(x)
        self.total += x.sum(0)
        self.products.addmm_(x.t(), x)

    def state(self) -> dict[str, Tensor]:
        """The sums so far and the position, as copies. The first member of a team then has the sums, as after loading."""
        sums = {name: self.team.sum(getattr(self, name).clone()) for name in ("count", "total", "products")}
        state = sums | {"position": torch.tensor([self.next_block])}
        self.load_state(state)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continues exactly where `state` was taken. Raises RefusedFile when it does not fit."""
        try:
            for name in ("count", "total", "products"):
                getattr(self, name).copy_(state[name] if self.team.rank == 0 else torch.zeros_like(state[name]))
            (self.next_block,) = state["position"].tolist()
        except (KeyError, RuntimeError, ValueError) as error:
            raise RefusedFile(f"the checkpoint does not fit this control: {error}") from error

    def finish(self) -> SparseAutoencoder:
        """The control. Raises CellFailed when it has seen no hidden states."""
        count, total, products = map(self.team.sum, (self.count, self.total, self.products))
        if count == 0:
            raise CellFailed("no hidden states to compute this control from")
        mean = total / count
        self.sae.fit(Moments(mean, products / count - mean.outer(mean)))
        return self.sae.eval().requires_grad_(False)
