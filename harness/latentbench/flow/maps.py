"""Maps from the latents of one site to those of a neighbouring one, and what they do to codes.

In operator form a map is T = 1[x > 0] ∘ topk(W_A W_Bᵀ) (Feature Flow, arXiv 2502.03032, §3): many latents may go to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.flow.matching import NOBODY
from latentbench.flow.options import Flow
from latentbench.flow.topology import Link, links, residual_sites
from latentbench.sae.autoencoder import Codes
from latentbench.study.context import Content


@dataclass(frozen=True)
class LatentMap:
    """For every latent of one site, its matches at another, best first."""

    indices: Tensor
    """[width, k] int64 latents of the other site; NOBODY for none."""
    scores: Tensor
    """[width, k] float32: what the matching maximised (a cosine, an inner product, a correlation); −inf at NOBODY."""
    cosines: Tensor
    """[width, k] float32: cosine of the two decoder rows, whatever the matching; 0 at NOBODY."""
    width: int
    """Number of latents of the other site."""

    @property
    def best(self) -> Tensor:
        """[width] float32: the highest cosine of each latent's matches; the paper's s."""
        return self.cosines.amax(1)

    def active(self) -> Tensor:
        """[width, k] bool: matches of positive score, the entries of T."""
        return (self.indices != NOBODY) & (self.scores > 0)

    def then(self, following: LatentMap) -> LatentMap:
        """The composition: this map, then `following`. A path is as good as its worst step; of the paths from one latent
        to another the best counts, and as many latents are kept as the wider of the two maps has matches."""
        reached, lost = self.indices.clamp_min(0), ~self.active()
        # [width, k, k'] paths through every match in between, then [width, k · k'].
        dead = (lost[:, :, None] | ~following.active()[reached]).flatten(1)
        scores = torch.minimum(self.scores[:, :, None], following.scores[reached]).flatten(1)
        cosines = torch.minimum(self.cosines[:, :, None], following.cosines[reached]).flatten(1)
        paths = following.indices[reached].flatten(1), scores.masked_fill(dead, -torch.inf), cosines
        return _best_paths(*paths, max(self.indices.shape[1], following.indices.shape[1]), following.width)

    def carry(self, codes: Codes, scale: tuple[Tensor, Tensor] | None = None) -> Codes:
        """z T: codes [N, A] of this site as codes [N, A·k] of the other. Latents that meet stay separate entries.

        `scale` = (θ of this site [width], θ of the other): activations are divided by the one and multiplied by the
        other, as folded SAEs would pass them on.
        """
        rows, values = codes.indices, codes.values
        values = values if scale is None else values / scale[0][rows]
        indices, on = self.indices[rows].clamp_min(0), self.active()[rows]
        carried = values[:, :, None] * on
        carried = carried if scale is None else carried * scale[1][indices]
        return Codes(carried.flatten(1), indices.flatten(1))


def _best_paths(indices: Tensor, scores: Tensor, cosines: Tensor, kept: int, width: int) -> LatentMap:
    """From paths [width, P] to latents `indices`, of score −inf where there is none: the best to each latent, the `kept` best of those."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, indices.gather(1, order).argsort(dim=1, stable=True))  # by latent, its best path first
    indices, scores, cosines = (paths.gather(1, order) for paths in (indices, scores, cosines))
    again = torch.nn.functional.pad(indices[:, 1:] == indices[:, :-1], (1, 0))
    scores, order = scores.masked_fill(again, -torch.inf).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :kept], order[:, :kept]
    lost = scores == -torch.inf
    indices, cosines = indices.gather(1, order).masked_fill(lost, NOBODY), cosines.gather(1, order).masked_fill(lost, 0)
    return LatentMap(indices, scores, cosines, width)


@dataclass(frozen=True)
class FlowMaps:
    """All maps of a cell, both ways, and the options that made them."""

    options: Flow
    sites: tuple[Site, ...]
    maps: Mapping[tuple[Site, Site], LatentMap]
    """(from, to) to map: two for every link."""
    d_in: int
    """Dimensions of the hidden states."""

    @property
    def links(self) -> tuple[Link, ...]:
        """Neighbouring sites, first layer to last."""
        return links(self.sites)

    @cached_property
    def residual(self) -> tuple[Site, ...]:
        """Sites of the residual stream, first to last."""
        return tuple(residual_sites(self.sites))

    def backward(self, link: Link) -> LatentMap:
        """For every latent of the link's target, its predecessors."""
        return self.maps[link.target, link.source]

    def forward(self, link: Link) -> LatentMap:
        """For every latent of the link's source, its successors."""
        return self.maps[link.source, link.target]

    def into(self, target: Site) -> tuple[Link, ...]:
        """Links that end at `target`."""
        return tuple(link for link in self.links if link.target == target)

    def out_of(self, source: Site) -> Link | None:
        """The link to the next residual site; None from the last one."""
        return next((link for link in self.links if link.source == source), None)

    def composed(self, source: Site, target: Site) -> LatentMap:
        """The map over many layers, either way along the residual stream. Raises InvalidInput where none leads there."""
        path = list(self.residual)
        if source not in path or target not in path or source == target:
            raise InvalidInput(f"no path of maps leads from {source} to {target}")
        start, end = path.index(source), path.index(target)
        way = path[start : end + 1] if start < end else path[end : start + 1][::-1]
        steps: Iterator[LatentMap] = (self.maps[pair] for pair in pairwise(way))
        total = next(steps)
        for step in steps:
            total = total.then(step)
        return total

    def width(self, site: Site) -> int:
        """Dictionary width at a site. Raises InvalidInput for a site without a map."""
        for (source, target), found in self.maps.items():
            if source == site:
                return len(found.indices)
            if target == site:
                return found.width
        raise InvalidInput(f"there is no map at {site}; there are maps at {', '.join(map(str, self.sites))}")

    def counts(self, cosine: float, to: Site) -> float:
        """From which cosine on a match among the latents of `to` counts: `cosine`, but no less than chance allows."""
        level = 1 - self.options.thresholds.chance
        return max(cosine, chance_cosine(self.width(to), self.d_in, level))

    def to_content(self) -> Content:
        """Tensors by pair of sites, and the sites."""
        tensors = {}
        for (source, target), found in self.maps.items():
            for name in ("indices", "scores", "cosines"):
                value: Tensor = getattr(found, name)
                tensors[f"{source}-{target}.{name}"] = value.to(torch.int32 if name == "indices" else torch.float32)
        sites = [site.plain() for site in self.sites]
        return Content(tensors, {"sites": sites, "widths": self._widths(), "d_in": self.d_in})

    @staticmethod
    def from_content(content: Content, options: Flow) -> FlowMaps:
        """The inverse of `to_content`."""
        sites = tuple(Site.model_validate(site) for site in content.meta["sites"])
        widths = content.meta["widths"]
        pairs = [pair for link in links(sites) for pair in ((link.source, link.target), (link.target, link.source))]
        maps = {pair: _read(content.tensors, pair, int(widths[str(pair[1])])) for pair in pairs}
        return FlowMaps(options, sites, maps, int(content.meta["d_in"]))

    def _widths(self) -> dict[str, int]:
        return {str(site): self.width(site) for site in connected(self.sites)}


@lru_cache(maxsize=256)
def chance_cosine(width: int, d: int, level: float = 0.5) -> float:
    """Quantile over random directions in d dimensions of the best cosine with `width` random directions.

    (1 + c) / 2 of two random directions is Beta((d − 1)/2, (d − 1)/2); the best of `width` has that distribution to
    the power of `width`. The median is 0.08 for 16,384 latents in 2,304 dimensions, 0.28 for 1,024 in 128.
    """
    from scipy.stats import beta

    return float(2 * beta.ppf(level ** (1 / width), (d - 1) / 2, (d - 1) / 2) - 1)


def connected(sites: Iterable[Site]) -> list[Site]:
    """Sites that have a neighbour, in the order given."""
    given = list(sites)
    found = {site for link in links(given) for site in (link.source, link.target)}
    return [site for site in given if site in found]


def _read(tensors: Mapping[str, Tensor], pair: tuple[Site, Site], width: int) -> LatentMap:
    name = f"{pair[0]}-{pair[1]}"
    return LatentMap(tensors[f"{name}.indices"].long(), tensors[f"{name}.scores"], tensors[f"{name}.cosines"], width)
