"""How the perturbation travels: Δ_j(t) = h_j^steered(t) − h_j^plain(t) after every block j, over the same text.

* diff-diff: mean over t of cos(Δ_j(t), mean_t Δ_j): is it the same direction at every token?
* diff-vector: mean over t of cos(Δ_j(t), s_j): is it the direction that a vector trained at layer j adds?

Small Vectors (arXiv 2509.06608, section 5). Two passes, so that nothing but sums is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from adapters.protocols import LanguageModel
from harness.activations.blocks import decoder_blocks
from harness.activations.site import Site
from harness.steering.intervention import Intervention
from harness.steering.mechanism.passages import Passages, trace


@dataclass(frozen=True)
class Persistence:
    """Per passage and layer, summed over its generated tokens."""

    layers: tuple[int, ...]
    """Those that the perturbation reaches."""
    diff_diff: Tensor
    """[B, layers] float64 sums of cosines."""
    diff_vector: Tensor
    """[B, layers] float64, NaN where there is no vector of that layer."""
    relative: Tensor
    """[B, layers] float64 sums of ‖Δ_j‖ / ‖h_j‖."""
    tokens: Tensor
    """[B] generated tokens."""
    means: dict[int, Tensor]
    """Layer to mean Δ [d_model]."""


@torch.no_grad()
def persistence(
    lm: LanguageModel, intervention: Intervention, passages: Passages, first: int, vectors: Mapping[int, Tensor]
) -> Persistence:
    """From layer `first` on. `vectors` are those to compare with, by layer."""
    layers = tuple(range(first, len(decoder_blocks(lm.model))))
    sites = {layer: Site(index=layer) for layer in layers}
    means = _means(lm, intervention, passages, sites)
    rows = [_cosines(lm, intervention, batch, sites, means, vectors) for batch in passages.batches()]
    diff_diff, diff_vector, relative = (torch.cat([row[part] for row in rows]) for part in range(3))
    tokens = passages.predicting.sum(1).double().cpu()
    return Persistence(
        layers, diff_diff, diff_vector, relative, tokens, {layer: means[layer].cpu() for layer in layers}
    )


def _differences(
    lm: LanguageModel, intervention: Intervention, batch: Passages, sites: Mapping[int, Site]
) -> Mapping[int, tuple[Tensor, Tensor]]:
    """Layer to Δ [B, T, d] and the plain state's norms [B, T], in float32."""
    steered = trace(lm, batch, intervention, sites.values()).states
    plain = trace(lm, batch, None, sites.values()).states
    return {
        layer: (steered[site].float() - plain[site].float(), plain[site].float().norm(dim=-1))
        for layer, site in sites.items()
    }


def _means(
    lm: LanguageModel, intervention: Intervention, passages: Passages, sites: Mapping[int, Site]
) -> dict[int, Tensor]:
    sums: dict[int, Tensor] = {}
    count = 0
    for batch in passages.batches():
        chosen = batch.predicting
        count += int(chosen.sum())
        for layer, (delta, _) in _differences(lm, intervention, batch, sites).items():
            total = delta[chosen].double().sum(0)
            sums[layer] = sums[layer] + total if layer in sums else total
    return {layer: (total / max(count, 1)).float() for layer, total in sums.items()}


def _cosines(
    lm: LanguageModel,
    intervention: Intervention,
    batch: Passages,
    sites: Mapping[int, Site],
    means: Mapping[int, Tensor],
    vectors: Mapping[int, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Three [B, layers]: sums over generated tokens."""
    chosen = batch.predicting
    columns: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for layer, (delta, norms) in _differences(lm, intervention, batch, sites).items():
        columns[0].append(_sum(cosine_similarity(delta, means[layer], dim=-1), chosen))
        vector = vectors.get(layer)
        unknown = torch.full((len(batch),), torch.nan, dtype=torch.float64)
        columns[1].append(
            unknown if vector is None else _sum(cosine_similarity(delta, vector.to(delta.device), dim=-1), chosen)
        )
        columns[2].append(_sum(delta.norm(dim=-1) / norms.clamp_min(1e-30), chosen))
    stacked = tuple(torch.stack(column, 1) for column in columns)
    return stacked[0], stacked[1], stacked[2]


def _sum(values: Tensor, chosen: Tensor) -> Tensor:
    return (values.double() * chosen).sum(1).cpu()
