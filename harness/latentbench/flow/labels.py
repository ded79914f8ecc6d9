"""From which cosines on matches count, and what they say of a latent's origin (Feature Flow, arXiv 2502.03032, §3.2).

The thresholds of a spec are raised to what chance would give (`FlowMaps.counts`), so they differ with the width of the
dictionary that is searched: reports and exports say what was applied, from the least to the greatest. Labels tell where each
latent of the residual stream comes from, layer statistics how layers differ in that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.maps import FlowMaps, chance_cosine
from latentbench.flow.matching import NOBODY
from latentbench.flow.options import LABELS, Label
from latentbench.flow.topology import Link, Part, depth

PART_NAMES: dict[Part, str] = {"residual": "residual stream", "mlp": "MLPs", "attention": "attention"}


def rules(maps: FlowMaps) -> dict[str, Json]:
    """`matching`, `k`, `fold`, and by part the [least, greatest] cosine that counts: `graph` in graphs, `high` in labels."""
    options = maps.options
    found: dict[str, Json] = {"matching": options.matching, "k": options.k, "fold": options.folding}
    for part in PART_NAMES:
        links = [link for link in maps.links if link.part == part]
        if links:
            graph, high = (cut for link in links for cut in graph_cuts(maps, link)), (high_cut(maps, x) for x in links)
            found[part] = {"graph": _range(graph), "high": _range(high)}
    return found


def rules_in_words(rules: dict[str, Json]) -> Iterator[str]:
    """The rules in words."""
    fold = "" if rules["fold"] == "none" else f", folded by {rules['fold']}"
    yield f"{rules['matching']} matching, k = {rules['k']}{fold}"
    ends = [f"{name} below {_text(rules[part]['graph'])}" for part, name in PART_NAMES.items() if part in rules]
    yield f"left out of graphs: {', '.join(ends)}"


def graph_cuts(maps: FlowMaps, link: Link) -> tuple[float, ...]:
    """From which cosine on a link is in a graph: back along it, and for the residual stream on along it too."""
    thresholds = maps.options.thresholds
    if link.part != "residual":
        return (maps.counts(thresholds.drop, link.source),)
    return maps.counts(thresholds.cut, link.source), maps.counts(thresholds.cut, link.target)


def high_cut(maps: FlowMaps, link: Link) -> float:
    """From which cosine on a predecessor counts as high in labels."""
    high = maps.options.thresholds.at(depth(link.target) - 1)
    return maps.counts(high.residual if link.part == "residual" else high.module, link.source)


def _range(cosines: Iterable[float]) -> list[float]:
    values = [round(cosine, 4) for cosine in cosines]
    return [min(values), max(values)]


def _text(cut: list[float]) -> str:
    low, high = (f"{value:.2f}" for value in cut)
    return low if low == high else f"{low}–{high}"


@dataclass(frozen=True)
class Origins:
    """The latents of one residual site and their predecessors."""

    site: Site
    scores: Mapping[Part, Tensor]
    """[width] float32 s(R), s(M), s(A): cosine of the best predecessor, of the parts that the cell has SAEs for."""
    labels: Tensor
    """[width] int64: position in LABELS."""

    def label(self, latent: int) -> Label:
        """The label of one latent."""
        return LABELS[int(self.labels[latent])]


def origins(maps: FlowMaps, site: Site) -> Origins | None:
    """Scores and labels of the latents at `site`; None at the first site, which nothing leads to.

    High s(R) and low s(M), s(A): translated. High s(R) and high s(M) or s(A): processed. Low s(R) and high s(M) or
    s(A): newborn. All low: unexplained. A part without SAEs counts as low, so without any all latents are translated
    or unexplained.
    """
    into = {link.part: link for link in maps.into(site)}
    if "residual" not in into:
        return None
    scores = {part: maps.backward(link).best for part, link in into.items()}
    high = {part: scores[part] >= high_cut(maps, link) for part, link in into.items()}
    kept = high.pop("residual")
    written = torch.stack(list(high.values())).any(0) if high else torch.zeros_like(kept)
    labels = torch.where(kept, torch.where(written, 1, 0), torch.where(written, 2, 3))
    return Origins(site, scores, labels)


@dataclass(frozen=True)
class LayerStatistics:
    """One residual site in numbers."""

    site: Site
    width: int
    shares: Mapping[Label, float]
    """Share of latents with each label; empty at the first site."""
    births: float | None
    """Share of latents without a predecessor in the residual stream at or above the cut; None at the first site."""
    deaths: float | None
    """Share of latents without a successor at or above the cut; None at the last site."""
    persistence: float
    """Mean number of further layers a latent's path of best successors goes on at or above the cut."""
    chance: float | None
    """Median best cosine of a random direction with this site's predecessor dictionary; None at the first site."""
    cut: float | None
    """From which cosine on a predecessor counted for births: `thresholds.cut` or what chance gives; None at the first
    site."""

    def plain(self) -> dict[str, Json]:
        """As JSON data, for reports."""
        return {**vars(self), "site": str(self.site), "shares": dict(self.shares)}


def layer_statistics(maps: FlowMaps) -> list[LayerStatistics]:
    """Birth, death and persistence per residual site, first to last, over all latents of the dictionaries."""
    lengths = path_lengths(maps)
    return [_statistics(maps, site, lengths[site]) for site in maps.residual]


def path_lengths(maps: FlowMaps) -> dict[Site, Tensor]:
    """[width] float32 per residual site: steps of the path of best successors before it falls below the cut."""
    lengths: dict[Site, Tensor] = {}
    for site in reversed(maps.residual):
        link = maps.out_of(site)
        if link is None:
            lengths[site] = torch.zeros(maps.width(site))
            continue
        onward, following = strongest(maps, site, link.target)
        lengths[site] = torch.where(following, 1 + lengths[link.target][onward], 0.0)
    return lengths


def strongest(maps: FlowMaps, site: Site, to: Site) -> tuple[Tensor, Tensor]:
    """[width] the match of highest cosine of each latent (0 where none), and whether it is at or above the cut."""
    found = maps.maps[site, to]
    cosines, best = found.cosines.max(1, keepdim=True)
    chosen = found.indices.gather(1, best)[:, 0]
    return chosen.clamp_min(0), (cosines[:, 0] >= maps.counts(maps.options.thresholds.cut, to)) & (chosen != NOBODY)


def _statistics(maps: FlowMaps, site: Site, lengths: Tensor) -> LayerStatistics:
    found, outward, cut = origins(maps, site), maps.out_of(site), maps.options.thresholds.cut
    counts = torch.bincount(found.labels, minlength=len(LABELS)).tolist() if found else []
    before = next((link.source for link in maps.into(site) if link.part == "residual"), None)

    def lost(to: Site) -> float:
        return float((maps.maps[site, to].best < maps.counts(cut, to)).float().mean())

    return LayerStatistics(
        site,
        maps.width(site),
        {label: count / len(lengths) for label, count in zip(LABELS, counts, strict=False)},  # none at the first site
        None if before is None else lost(before),
        None if outward is None else lost(outward.target),
        float(lengths.mean()),
        None if before is None else chance_cosine(maps.width(before), maps.d_in),
        None if before is None else maps.counts(cut, before),
    )
