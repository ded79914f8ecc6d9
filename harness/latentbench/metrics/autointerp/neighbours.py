"""Which latents are easily taken for each other: those with the most similar decoder directions."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from latentbench.errors import InvalidInput
from latentbench.metrics.autointerp.best import Integers
from latentbench.sae.base import SparseAutoencoder

NEIGHBOURS = 8
_AT_ONCE = 64


def nearest(sae: SparseAutoencoder, latents: Integers) -> tuple[Integers, list[list[int]]]:
    """The latents [.] with the largest decoder cosine to any of `latents` [C], and for each of these its eight as columns
    of [C + .].

    Raises InvalidInput for an SAE without decoder rows.
    """
    rows = sae.decoder_rows()
    if rows is None:
        raise InvalidInput("`hard_negatives: neighbours` needs an SAE with decoder rows; use `same_token`")
    directions, count = normalize(rows.detach().float()), min(NEIGHBOURS + 1, len(rows))
    near = []
    for part in torch.split(torch.from_numpy(latents).to(directions.device), _AT_ONCE):
        cosine = directions[part] @ directions.T
        cosine[torch.arange(len(part), device=part.device), part] = -2  # not itself
        near.append(cosine.topk(count, dim=1).indices[:, : count - 1].cpu())
    numbers = torch.cat(near).numpy() if near else np.zeros((0, count - 1), dtype=np.int64)
    others = np.setdiff1d(numbers, latents)
    column_of = {int(latent): column for column, latent in enumerate((*latents, *others))}
    return others, [[column_of[int(latent)] for latent in row] for row in numbers]
