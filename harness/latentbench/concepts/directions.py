"""Directions that tell texts with a concept from texts without it, and how well a number per text or token does."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.concepts.texts import TextStates
from latentbench.core.errors import CellFailed
from latentbench.latents.probing import Labels, fit
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.steering.computed_vectors import direction_of

_TOKENS_AT_ONCE = 2048


def mean_difference(means: Tensor, labels: Labels) -> Tensor:
    """[d] mean of the texts [n, d] with the concept minus that of the others."""
    with_it = torch.from_numpy(labels)
    found: Tensor = means[with_it].mean(0) - means[~with_it].mean(0)
    return found


def first_component(means: Tensor, labels: Labels) -> Tensor:
    """[d] first right singular vector of the differences of text i with the concept and text i without it.

    It points where the mean of the differences does and is as long as that is in its direction.
    """
    with_it = torch.from_numpy(labels)
    return direction_of(means[with_it] - means[~with_it], "pca")


def probe_direction(means: Tensor, labels: Labels) -> Tensor:
    """[d] the weights of a logistic regression on texts [n, d]."""
    return torch.from_numpy(fit(means.double().numpy(), labels).direction)


@torch.no_grad()
def telling_latent(
    states: TextStates, labels: Labels, sae: SparseAutoencoder, device: torch.device
) -> tuple[int, float]:
    """The latent of an SAE on `device` whose largest activation in a text has the highest AUROC, the first of equals, and that AUROC."""
    found = []
    for part in torch.split(states.states, _TOKENS_AT_ONCE):
        codes = sae.encode(part.float().to(device))
        dense = torch.zeros(len(part), sae.width).scatter_add_(1, codes.indices.cpu(), codes.values.float().cpu())
        found.append(dense)
    scores = aurocs(states.pooled_max(torch.cat(found)).numpy(), labels)
    best = int(scores.argmax())
    return best, float(scores[best])


def aurocs(scores: Array, labels: Labels) -> Array:
    """[n] for scores [things, n]: share of pairs of one of each label that are in the right order; ties count half."""
    from scipy.stats import rankdata

    positive = int(labels.sum())
    if not 0 < positive < len(labels):
        raise CellFailed("an AUROC needs things with the concept and things without it")
    ranks = rankdata(scores, axis=0)[labels].sum(0) - positive * (positive + 1) / 2
    found: Array = ranks / (positive * (len(labels) - positive))
    return found
