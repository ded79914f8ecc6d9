"""From seed latents to interventions along their flow graphs: cumulative steering and deactivation (Feature Flow, §3.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from latentbench.activations.site import Site
from latentbench.errors import InvalidInput
from latentbench.flow.checks import Growth, Span
from latentbench.flow.editing import Rescaling
from latentbench.flow.graph import FlowGraph, Node, traced
from latentbench.flow.maps import FlowMaps
from latentbench.flow.places import block_of
from latentbench.sae.base import SparseAutoencoder
from latentbench.steering.inject import VectorInjection
from latentbench.steering.intervention import Intervention
from latentbench.steering.vectors import SteeringVectors


def scheduled(schedule: Growth, strength: float, alpha: float, blocks: Sequence[int]) -> dict[int, float]:
    """Strength per decoder block of a path (ascending): s, s · exp(α (l − l₀)), or from s to 1 over the path."""
    first, last = blocks[0], blocks[-1]
    if schedule == "constant":
        return dict.fromkeys(blocks, strength)
    if schedule == "exponential":
        return {block: strength * math.exp(alpha * (block - first)) for block in blocks}
    share = {block: (block - first) / max(1, last - first) for block in blocks}
    return {block: strength + (1 - strength) * share[block] for block in blocks}


def route(maps: FlowMaps, seed: Node, span: Span | None = None) -> list[Node]:
    """The residual latents of a seed's path whose block lies within `span`, first layer to last; none before block 0."""
    return [node for node in traced(maps, seed).path() if _within(node, span)]


def along(
    atoms: Mapping[Node, Tensor],
    routes: Iterable[Sequence[Node]],
    schedule: Growth,
    strength: float,
    *,
    alpha: float = -0.05,
) -> VectorInjection:
    """Steering with every latent of some routes; `atoms` are their (folded) decoder rows [d].

    Raises InvalidInput when the routes hold no latent.
    """
    vectors: dict[int, Tensor] = {}
    for path in ({block_of(node.site): node for node in nodes} for nodes in routes):
        for block, s in scheduled(schedule, strength, alpha, sorted(path)).items() if path else ():
            _add(vectors, block, s * atoms[path[block]])
    return _injection(vectors)


def only(atoms: Mapping[Node, Tensor], latents: Iterable[Node], strength: float) -> VectorInjection:
    """Steering with some latents, each at its own layer alone."""
    vectors: dict[int, Tensor] = {}
    for node in latents:
        _add(vectors, block_of(node.site), strength * atoms[node])
    return _injection(vectors)


def removal(saes: Mapping[Site, SparseAutoencoder], nodes: Iterable[Node], r: float) -> Intervention:
    """Rescaling of latents by r wherever they stand."""
    chosen: dict[Site, list[int]] = {}
    for node in nodes:
        chosen.setdefault(node.site, []).append(node.index)
    return Rescaling(saes, {site: torch.tensor(indices) for site, indices in chosen.items()}, r)


def graph_nodes(maps: FlowMaps, seeds: Sequence[Node], span: Span | None = None) -> list[Node]:
    """All latents of the seeds' graphs, MLPs and attention included, whose block lies within `span`."""
    graphs: list[FlowGraph] = [traced(maps, seed) for seed in seeds]
    nodes = dict.fromkeys(node for graph in graphs for node in graph.nodes)
    return [node for node in nodes if span is None or span[0] <= max(0, block_of(node.site)) <= span[1]]


def _within(node: Node, span: Span | None) -> bool:
    block = block_of(node.site)
    return block >= 0 and (span is None or span[0] <= block <= span[1])


def _add(vectors: dict[int, Tensor], block: int, vector: Tensor) -> None:
    if block >= 0:  # before the first block nothing can be added by layer
        vectors[block] = vectors[block] + vector if block in vectors else vector


def _injection(vectors: dict[int, Tensor]) -> VectorInjection:
    if not vectors:
        raise InvalidInput("no latent of the flow graph lies within the span that is to be steered")
    return VectorInjection(SteeringVectors(vectors))
