"""What says at every token whether it is to be changed: a direction in the hidden state, or a latent of an SAE."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changes import widened
from latentbench.interventions.latents import PlacedSae


@dataclass(frozen=True)
class Threshold:
    """On which side of a number a value has to be."""

    value: float
    above: bool = True

    def holds(self, values: Tensor) -> Tensor:
        """Bool, shaped like `values`: strictly above, or strictly below."""
        return values > self.value if self.above else values < self.value

    @property
    def identity(self) -> dict[str, Json]:
        """The number under the name of its side."""
        return {"above" if self.above else "below": self.value}


@dataclass(frozen=True)
class DirectionCondition:
    """h · d beyond a threshold, computed in float32 at least."""

    site: Site
    direction: Tensor
    """[d] float32."""
    threshold: Threshold

    @property
    def identity(self) -> Json:
        digest = sha256(self.direction.cpu().contiguous().numpy().tobytes()).hexdigest()
        return {"site": str(self.site), "direction": digest, **self.threshold.identity}

    def holds(self, hidden: Tensor) -> Tensor:
        wide = widened(hidden)
        return self.threshold.holds(wide @ self.direction.to(wide))


@dataclass(frozen=True)
class LatentCondition:
    """A latent's activation beyond a threshold; it does not hold at massive tokens, where there is no activation."""

    placed: PlacedSae
    latent: int
    threshold: Threshold

    @property
    def site(self) -> Site:
        """Where the SAE reads."""
        return self.placed.site

    @property
    def identity(self) -> Json:
        return {**self.placed.identity, "latent": self.latent, **self.threshold.identity}

    def holds(self, hidden: Tensor) -> Tensor:
        asked = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        active, counted = self.placed.read(hidden, asked, torch.tensor([self.latent]))
        holds = counted.clone()
        holds[counted] = self.threshold.holds(active[:, 0])
        return holds
