"""Flow graphs: from one latent back to where it came from and on to what becomes of it (Feature Flow, §3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.labels import Origins, origins, rules
from latentbench.flow.maps import FlowMaps, LatentMap
from latentbench.flow.matching import NOBODY
from latentbench.flow.options import Label
from latentbench.flow.topology import Part, depth, parse_latent

LIMIT = 2000
"""Nodes of a graph; beyond it the ends stay open. Reached with k > 1 only."""


@dataclass(frozen=True)
class LatentNode:
    """A latent."""

    site: Site
    index: int

    def __str__(self) -> str:
        return f"{self.site}:{self.index}"


@dataclass(frozen=True)
class Edge:
    """What a latent (`source`) becomes in the next residual stream (`target`)."""

    source: LatentNode
    target: LatentNode
    part: Part
    """What the source is to the target."""
    cosine: float


@dataclass(frozen=True)
class Facts:
    """What the maps say of a node."""

    scores: dict[Part, float]
    """s(R), s(M), s(A), of the parts there are; empty at the first site and at modules."""
    label: Label | None
    """None at the first site and at modules."""


@dataclass(frozen=True)
class FlowGraph:
    """All that leads to a seed latent and follows from it."""

    seed: LatentNode
    nodes: dict[LatentNode, Facts]
    """First layer to last."""
    edges: tuple[Edge, ...]
    """First layer to last."""
    truncated: bool
    """Whether it was stopped at LIMIT nodes."""
    rules: dict[str, Json]
    """See harness/latentbench/flow/labels.py."""

    def path(self) -> list[LatentNode]:
        """The residual latents through the seed, one per layer, along the strongest edges, first layer to last."""
        found = [self.seed, *self._strongest(back=True), *self._strongest(back=False)]
        return sorted(found, key=lambda node: depth(node.site))

    def _strongest(self, back: bool) -> Iterator[LatentNode]:
        node: LatentNode | None = self.seed
        while node is not None:
            steps = [e for e in self.edges if e.part == "residual" and (e.target if back else e.source) == node]
            best = max(steps, key=lambda edge: edge.cosine, default=None)
            node = None if best is None else (best.source if back else best.target)
            if node is not None:
                yield node


def parse_node(text: str) -> LatentNode:
    """`12.resid_post:4111` or `12:4111`. Raises InvalidInput."""
    return LatentNode(*parse_latent(text))


def traced(maps: FlowMaps, seed: LatentNode, *, back: bool = True, forth: bool = True, limit: int = LIMIT) -> FlowGraph:
    """The graph of a latent of the residual stream.

    A path ends before a residual match below `thresholds.cut`; module latents below `thresholds.drop` are left out.
    Raises InvalidInput for a seed that the maps do not know.
    """
    if seed.site not in maps.residual or not 0 <= seed.index < maps.width(seed.site):
        known = ", ".join(f"{site} (0 to {maps.width(site) - 1})" for site in maps.residual)
        raise InvalidInput(f"{seed} is no latent of the residual stream here; there are {known}")
    tracer = _Tracer(maps, limit)
    if forth:
        tracer.walk(seed, tracer.successors)
    if back:
        tracer.walk(seed, tracer.predecessors)
        for node in list(tracer.nodes):  # after all latents of the stream, since nothing leads on from a module
            tracer.take(tracer.modules(node))
    reached = {node.site for node in tracer.nodes}
    known_origins = {site: origins(maps, site) for site in maps.residual if site in reached}
    nodes = {node: _facts(known_origins.get(node.site), node) for node in sorted(tracer.nodes, key=_order)}
    edges = sorted(tracer.edges.values(), key=lambda edge: (_order(edge.source), _order(edge.target)))
    return FlowGraph(seed, nodes, tuple(edges), tracer.full, rules(maps))


class _Tracer:
    """Nodes and edges found so far; a dictionary without values keeps nodes in the order in which they were found."""

    def __init__(self, maps: FlowMaps, limit: int) -> None:
        self.nodes: dict[LatentNode, None] = {}
        self.edges: dict[tuple[LatentNode, LatentNode], Edge] = {}
        self.full = False
        self._maps, self._limit, self._thresholds = maps, limit, maps.options.thresholds

    def walk(self, seed: LatentNode, step: Callable[[LatentNode], list[Edge]]) -> None:
        """Follows `step` from the seed on, layer by layer."""
        self.nodes.setdefault(seed)
        frontier = [seed]
        while frontier:
            frontier = [new for node in frontier for new in self.take(step(node))]

    def take(self, edges: list[Edge]) -> list[LatentNode]:
        """Adds edges, and returns the nodes that are new."""
        before = len(self.nodes)
        for edge in edges:
            if len({*self.nodes, edge.source, edge.target}) > self._limit:
                self.full = True
                continue
            self.edges.setdefault((edge.source, edge.target), edge)
            self.nodes.setdefault(edge.source)
            self.nodes.setdefault(edge.target)
        return list(self.nodes)[before:]

    def successors(self, node: LatentNode) -> list[Edge]:
        """Edges to the next residual stream."""
        link = self._maps.out_of(node.site)
        if link is None:
            return []
        matches = _matches(self._maps.forward(link), node.index, self._maps.counts(self._thresholds.cut, link.target))
        return [Edge(node, LatentNode(link.target, latent), "residual", cosine) for latent, cosine in matches]

    def predecessors(self, node: LatentNode) -> list[Edge]:
        """Edges from the residual stream before."""
        return self._into(node, residual=True, threshold=self._thresholds.cut)

    def modules(self, node: LatentNode) -> list[Edge]:
        """Edges from the MLP and attention right before."""
        return self._into(node, residual=False, threshold=self._thresholds.drop)

    def _into(self, node: LatentNode, residual: bool, threshold: float) -> list[Edge]:
        chosen = [link for link in self._maps.into(node.site) if (link.part == "residual") == residual]
        return [
            Edge(LatentNode(link.source, latent), node, link.part, cosine)
            for link in chosen
            for latent, cosine in _matches(
                self._maps.backward(link), node.index, self._maps.counts(threshold, link.source)
            )
        ]


def _matches(found: LatentMap, latent: int, threshold: float) -> list[tuple[int, float]]:
    """Matches of one latent at or above a cosine, best first."""
    pairs = zip(found.indices[latent].tolist(), found.cosines[latent].tolist(), strict=True)
    return [(index, cosine) for index, cosine in pairs if index != NOBODY and cosine >= threshold]


def _facts(found: Origins | None, node: LatentNode) -> Facts:
    if found is None:
        return Facts({}, None)
    scores = {part: float(score[node.index]) for part, score in found.scores.items()}
    return Facts(scores, found.label(node.index))


def _order(node: LatentNode) -> tuple[int, int, str, int]:
    """Layer by layer: attention and MLP before the residual stream they write to."""
    return depth(node.site), 0 if node.site.point in ("attn_out", "mlp_out") else 1, node.site.point, node.index
