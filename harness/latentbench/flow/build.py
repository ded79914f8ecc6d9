"""Making the maps that a spec's `flow:` asks for out of a cell's SAEs, link by link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.flow.activity import Activity, activity, held, texts_of
from latentbench.flow.maps import FlowMaps, LatentMap
from latentbench.flow.matching import (
    NOBODY,
    Nearest,
    assigned,
    correlated,
    decoder_rows,
    encoder_rows,
    nearest,
    pair_cosines,
    thresholds,
)
from latentbench.flow.options import Flow
from latentbench.flow.topology import Link, links, untraceable
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.study.context import Content, StageContext

Both = tuple[Nearest, Nearest]
"""Matches of the source's latents and of the target's."""
Saes = Mapping[Site, SparseAutoencoder]


@torch.no_grad()
def build_maps(options: Flow, context: StageContext) -> Content:
    """All maps of the cell as content. Raises InvalidInput for sites or SAEs that cannot be matched."""
    saes = context.saes()
    if wrong := untraceable(saes):
        raise InvalidInput("; ".join(wrong))
    neighbours, done = links(saes), 0
    maps: dict[tuple[Site, Site], LatentMap] = {}
    texts = texts_of(options, context) if options.reads_tokens else None
    context.progress(0, len(neighbours), "maps")
    for target in dict.fromkeys(link.target for link in neighbours):
        group = [link for link in neighbours if link.target == target]
        # Layer by layer, at the price of more forward passes: the codes of all sites at once would fill the memory.
        activities = {} if texts is None else activity(context, texts, [target, *(link.source for link in group)])
        for link in group:
            maps.update(_linked(options, context, link, activities))
            done += 1
            context.progress(done, len(neighbours), "maps")
    return FlowMaps(options, tuple(saes), maps, next(iter(saes.values())).d_in).to_content()


def _linked(
    options: Flow, context: StageContext, link: Link, activities: Mapping[Site, Activity]
) -> dict[tuple[Site, Site], LatentMap]:
    """The maps of one link, both ways. Only its two SAEs are held."""
    saes = held(context, (link.source, link.target))
    forward, backward = _matched(options, context, saes, link, activities)
    return dict(_maps(link, forward, backward, saes))


def _matched(options: Flow, context: StageContext, saes: Saes, link: Link, activities: Mapping[Site, Activity]) -> Both:
    if options.matching == "pearson":
        return correlated(activities[link.source], activities[link.target], options.k)
    source, target = (
        _rows(options, context, saes, link.source, activities),
        _target(options, context, saes, link, activities),
    )
    unit = options.folding == "none"
    if options.matching == "permutation":
        limits = {"exact_width": options.exact_width, "neighbours": options.neighbours}
        return assigned(source, target, unit=unit, **limits)
    if options.matching == "random":
        return _drawn(options, context, link, source, target)
    return nearest(source, target, options.k, unit=unit)


def _rows(options: Flow, context: StageContext, saes: Saes, site: Site, activities: Mapping[Site, Activity]) -> Tensor:
    """What is compared at a site [width, d]: decoder rows, scaled where the options say so."""
    rows = decoder_rows(saes[site], site).to(context.device)
    scale = folds(options, saes[site], site, activities)
    return rows if scale is None else rows * scale.to(rows)[:, None]


def _target(
    options: Flow, context: StageContext, saes: Saes, link: Link, activities: Mapping[Site, Activity]
) -> Tensor:
    if options.matching == "encoder":
        return encoder_rows(saes[link.target]).to(context.device)
    return _rows(options, context, saes, link.target, activities)


def folds(options: Flow, sae: SparseAutoencoder, site: Site, activities: Mapping[Site, Activity]) -> Tensor | None:
    """[width] what decoder rows are multiplied by; None where they are not."""
    if options.folding == "threshold":
        return thresholds(sae, site)
    return activities[site].mean_active() if options.folding == "activation" else None


def _drawn(options: Flow, context: StageContext, link: Link, source: Tensor, target: Tensor) -> Both:
    """Random matches: `k` different ones of the `candidates` nearest, or `k` of all latents, which may be the same."""
    generator = torch.Generator().manual_seed(context.seed("random matches", link.name))
    if options.candidates == "all":
        sides = (len(source), len(target)), (len(target), len(source))
        forward, backward = (_any(widths, options.k, generator) for widths in sides)
    else:
        found = nearest(source, target, options.candidates)
        forward, backward = (_some(side, options.k, generator) for side in found)
    return forward, backward


def _any(widths: tuple[int, int], k: int, generator: torch.Generator) -> Nearest:
    # With replacement: different ones would need a permutation of the dictionary per latent.
    indices = torch.randint(widths[1], (widths[0], k), generator=generator)
    return Nearest(indices, torch.ones(indices.shape))  # above 0, so that all are entries of the map


def _some(found: Nearest, k: int, generator: torch.Generator) -> Nearest:
    # The largest of uniform numbers are a uniform draw without replacement; NOBODY is drawn when nothing else is left.
    drawn = torch.rand(found.indices.shape, generator=generator).to(found.scores.device)
    chosen = drawn.masked_fill(found.indices == NOBODY, -1).topk(k, dim=1).indices
    return Nearest(found.indices.gather(1, chosen), found.scores.gather(1, chosen))


def _maps(link: Link, forward: Nearest, backward: Nearest, saes: Saes) -> Iterator[tuple[tuple[Site, Site], LatentMap]]:
    source, target = (decoder_rows(saes[site], site) for site in (link.source, link.target))
    yield (link.source, link.target), _map(forward, source, target)
    yield (link.target, link.source), _map(backward, target, source)


def _map(found: Nearest, own: Tensor, other: Tensor) -> LatentMap:
    indices = found.indices.to(own.device)
    cosines = pair_cosines(own, other, indices)
    return LatentMap(indices.cpu(), found.scores.float().cpu(), cosines.float().cpu(), len(other))
