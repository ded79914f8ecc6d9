"""Places: sites found in a loaded model, and how what is there is read and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from latentbench.activations.additions import PARTS, additions
from latentbench.activations.blocks import check_site, submodule
from latentbench.activations.site import Site
from latentbench.activations.values import hidden_state, with_first_tensor
from latentbench.errors import InvalidInput


@dataclass(frozen=True)
class Place:
    """A module at whose output a site is read, and what the block multiplies that output by before it adds it."""

    module: nn.Module
    multiplier: float = 1.0

    def read(self, output: Any) -> Tensor:
        """The hidden state [B, T, d] in what the module returned, a tensor of its own. Raises InvalidInput."""
        # A copy, because some models (Falcon) go on to add to what a submodule returned in place.
        hidden = hidden_state(output)
        return hidden.clone() if self.multiplier == 1 else hidden * self.multiplier

    def written(self, output: Any, hidden: Tensor) -> Any:
        """What the module is to return for `hidden` [B, T, d] to be there; to rounding where it is scaled."""
        return with_first_tensor(output, hidden.clone() if self.multiplier == 1 else hidden / self.multiplier)

    def moved(self, output: Any, delta: Tensor) -> Any:
        """What the module is to return for `delta` [B, T, d] to be added; what it does not touch keeps every bit."""
        scaled = delta if self.multiplier == 1 else delta / self.multiplier
        return with_first_tensor(output, hidden_state(output) + scaled)


def locate(model: nn.Module, site: Site) -> Place:
    """The place of a site, for the residual stream the block itself.

    Raises InvalidInput when the model has no such block or submodule, and when what is read there is not what the block
    adds to the residual stream. The latter is measured the first time it matters (see `additions`).
    """
    block = check_site(model, site)
    if site.point not in PARTS:
        return Place(block)
    measured = additions(model)[site.index]
    if refusal := measured.refusals.get(site.point):
        raise InvalidInput(
            f"{type(block).__name__} (layer {site.index}): {refusal}, so what its {PARTS[site.point]} adds to "
            "the residual stream cannot be read at its output. The residual stream works."
        )
    return Place(submodule(block, site), measured.multipliers[site.point])
