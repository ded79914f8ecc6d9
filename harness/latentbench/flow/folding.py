"""Decoder and encoder rows on a scale that two SAEs share (SAE Match, arXiv 2410.07656, eq. 4).

A JumpReLU latent with threshold θ does the same as one with threshold 1, encoder row w_enc / θ and decoder row θ w_dec.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.activations.site import Site
from latentbench.errors import InvalidInput
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.linear import linear_weights
from latentbench.sae.rules import ThresholdRule


def decoder_rows(sae: SparseAutoencoder, site: Site) -> Tensor:
    """[width, d_in]. Raises InvalidInput for an SAE without a dictionary."""
    rows = sae.decoder_rows()
    if rows is None:
        raise InvalidInput(f"{site}: {type(sae).__name__} has no decoder rows to match")
    return rows.detach()


def encoder_rows(sae: SparseAutoencoder) -> Tensor:
    """[width, d_in]. Raises InvalidInput for an SAE without a linear encoder."""
    return torch.cat([group.W_enc for group in linear_weights(sae).groups]).detach()


def thresholds(sae: SparseAutoencoder, site: Site) -> Tensor:
    """[width] θ > 0 of a JumpReLU (or BatchTopK) SAE. Raises InvalidInput for one that selects otherwise."""
    groups = linear_weights(sae).groups
    found = [group.rule.threshold.expand(group.width) for group in groups if isinstance(group.rule, ThresholdRule)]
    if len(found) < len(groups) or not all(bool((theta > 0).all()) for theta in found):
        raise InvalidInput(
            f"{site}: {type(sae).__name__} has no positive thresholds to fold; use mean activations "
            "(`fold: activation`, `scales: [activation]`) instead"
        )
    return torch.cat(found).detach()
