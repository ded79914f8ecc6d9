"""Which latents a steering study acts on: seeds, their routes through the layers, and random latents in their place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from latentbench.activations.site import Site
from latentbench.errors import InvalidInput
from latentbench.flow.activity import Texts, activity, groups
from latentbench.flow.graph import Node, parse_node
from latentbench.flow.maps import FlowMaps
from latentbench.flow.places import block_of
from latentbench.flow.steering import graph_nodes, route
from latentbench.flow.studies.firing import firing_rates
from latentbench.lab import Lab
from latentbench.metrics.base import Array
from latentbench.metrics.flow.steering import FlowSteering


@dataclass(frozen=True)
class Chosen:
    """The latents of a study."""

    routes: Mapping[Node, tuple[Node, ...]]
    """Seed to what cumulative schedules act on for its sake, first layer to last: its path, or to remove it its graph."""
    strangers: Mapping[Node, Node]
    """A random latent of the same site in the place of every seed and of every latent of a route; empty where none is
    asked for."""
    wanted: int
    """Seeds that were asked for."""

    @property
    def seeds(self) -> tuple[Node, ...]:
        """The seeds."""
        return tuple(self.routes)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Seeds and routes, each latent once."""
        return tuple(dict.fromkeys(node for seed, nodes in self.routes.items() for node in (seed, *nodes)))

    def lengths(self) -> str:
        """Latents per route as text."""
        return ", ".join(str(len(nodes)) for nodes in self.routes.values())

    def degenerate(self) -> bool:
        """Whether no route goes beyond one latent, so that cumulative schedules would repeat what one layer does."""
        return all(len(nodes) < 2 for nodes in self.routes.values())


def chosen(study: FlowSteering, lab: Lab, maps: FlowMaps, texts: Mapping[str, Texts]) -> Chosen:
    """Seeds, routes and strangers; `texts` are the documents of each domain that latents may be chosen on."""
    seeds = tuple(dict.fromkeys(map(parse_node, study.seeds))) or _telling(study, lab, maps, texts)
    routes = {seed: _route(study, maps, seed) for seed in seeds}
    found = Chosen(routes, {}, len(set(study.seeds)) or study.select)
    if not any(way.startswith("random") for way in study.schedules):
        return found
    return Chosen(routes, _strangers(study, lab, texts, found.nodes), found.wanted)


def _route(study: FlowSteering, maps: FlowMaps, seed: Node) -> tuple[Node, ...]:
    follow = graph_nodes(maps, (seed,), study.span) if study.action == "deactivate" else route(maps, seed, study.span)
    return tuple(follow)


def _telling(study: FlowSteering, lab: Lab, maps: FlowMaps, texts: Mapping[str, Texts]) -> tuple[Node, ...]:
    """The latents that fire more often in the target domain, by how much, and lead somewhere; else the first of all."""
    site = _seed_site(study, maps)
    rates = {name: found[site] for name, found in _rates(lab, texts, (site,)).items()}
    telling = rates[study.target] - np.mean([rate for name, rate in rates.items() if name != study.target], axis=0)
    order = [Node(site, int(latent)) for latent in np.argsort(-telling, kind="stable")]
    apt = (node for node in order if telling[node.index] > 0 and len(_route(study, maps, node)) > 1)
    return tuple(islice(apt, study.select)) or tuple(order[: study.select])


def _seed_site(study: FlowSteering, maps: FlowMaps) -> Site:
    if study.layer is None:
        return maps.residual[len(maps.residual) // 2]
    found = next((site for site in maps.residual if block_of(site) == study.layer), None)
    if found is None:
        raise InvalidInput(f"flow_steering: there is no SAE on the residual stream leaving layer {study.layer}")
    return found


def _strangers(study: FlowSteering, lab: Lab, texts: Mapping[str, Texts], nodes: Iterable[Node]) -> dict[Node, Node]:
    """Random latents that fire (to be removed: in the target domain) and are none of `nodes`; all different."""
    here: dict[Site, list[Node]] = {}
    for node in nodes:
        here.setdefault(node.site, []).append(node)
    where = {study.target: texts[study.target]} if study.action == "deactivate" else texts
    rates = list(_rates(lab, where, here).values())
    found: dict[Node, Node] = {}
    for site, taken in here.items():
        firing = np.flatnonzero(np.sum([rate[site] for rate in rates], axis=0) > 0)
        others = np.setdiff1d(firing, [node.index for node in taken])
        if len(others) < len(taken):
            raise InvalidInput(
                f"flow_steering: only {len(others)} other latents fire at {site}, too few to stand in for {len(taken)}"
            )
        drawn = np.random.default_rng(lab.seed("strangers", str(site))).permutation(others)
        found |= {node: Node(site, int(latent)) for node, latent in zip(taken, drawn, strict=False)}
    return found


def _rates(lab: Lab, texts: Mapping[str, Texts], sites: Collection[Site]) -> dict[str, dict[Site, Array]]:
    """[width] by domain and site: share of tokens on which each latent fires."""
    rates: dict[str, dict[Site, Array]] = {name: {} for name in texts}
    for group in groups(sites):
        for name, given in texts.items():
            found = activity(lab, given, group)
            rates[name] |= {site: firing_rates(active.matrix()) for site, active in found.items()}
    return rates
