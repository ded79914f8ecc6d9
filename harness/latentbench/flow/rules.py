"""By what rules graphs and labels are made: the matching, and the cosines from which on its matches really count.

The thresholds of a spec are raised to what chance would give (`FlowMaps.counts`), so they differ with the width of the
dictionary that is searched: reports and exports say what was applied, from the least to the greatest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from latentbench.flow.maps import FlowMaps
from latentbench.flow.places import Link, Part, depth
from latentbench.section import Json

NAMES: dict[Part, str] = {"residual": "residual stream", "mlp": "MLPs", "attention": "attention"}


def rules(maps: FlowMaps) -> dict[str, Json]:
    """`matching`, `k`, `fold`, and by part the [least, greatest] cosine that counts: `graph` in graphs, `high` in labels."""
    options = maps.options
    found: dict[str, Json] = {"matching": options.matching, "k": options.k, "fold": options.folding}
    for part in NAMES:
        links = [link for link in maps.links if link.part == part]
        if links:
            graph, high = (cut for link in links for cut in graph_cuts(maps, link)), (high_cut(maps, x) for x in links)
            found[part] = {"graph": _range(graph), "high": _range(high)}
    return found


def said(rules: dict[str, Json]) -> Iterator[str]:
    """The rules in words."""
    fold = "" if rules["fold"] == "none" else f", folded by {rules['fold']}"
    yield f"{rules['matching']} matching, k = {rules['k']}{fold}"
    ends = [f"{name} below {_text(rules[part]['graph'])}" for part, name in NAMES.items() if part in rules]
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
