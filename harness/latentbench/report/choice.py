"""Which latents a page shows."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.metrics.autointerp.details import AutointerpDetails, LatentDetail
from latentbench.metrics.latents.survey import Survey


def explained(details: AutointerpDetails | None) -> dict[int, LatentDetail]:
    """The latents that were sampled for autointerp, with the SAE as it was trained."""
    budgets = details.budgets if details else ()
    return {latent.latent: latent for budget in budgets if budget.budget is None for latent in budget.latents}


def chosen(surveys: dict[str, Survey], sampled: dict[int, LatentDetail], most: int) -> list[int]:
    """At most `most` latents in ascending order: the sampled ones, then others that fire, evenly over their densities."""
    first = sorted(sampled)[:most]
    others = [latent for latent in _by_density(surveys).tolist() if latent not in sampled]
    room = most - len(first)
    if len(others) > room:
        others = [others[i * len(others) // room] for i in range(room)]
    return sorted([*first, *others])


def _by_density(surveys: dict[str, Survey]) -> Tensor:
    """The latents that fire on some domain, rarest first."""
    if not surveys:
        return torch.zeros(0, dtype=torch.int64)
    firing = torch.stack([found.firing for found in surveys.values()]).sum(0)
    order = torch.argsort(firing, stable=True)
    return order[firing[order] > 0]
