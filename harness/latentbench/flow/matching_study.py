"""What `flow_matching` and `flow_agreement` do: how well latents match those of the layer before, and whether matches fire together.

Both read the maps and the latents that fire on a domain. Agreement also collects the tokens that latents are most active
on, since it has their codes at hand; pages show them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import mannwhitneyu
from torch import Tensor

from latentbench.activations.tokens import EvalTokens
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.activity import (
    Firing,
    Integers,
    TokenRows,
    active_at,
    batches,
    codes_at,
    fired,
    firing,
    firing_rates,
    groups,
    held,
    ordinary_tokens,
)
from latentbench.flow.labels import layer_statistics, origins
from latentbench.flow.maps import FlowMaps
from latentbench.flow.metrics import FlowAgreement, FlowMatching
from latentbench.flow.options import LABELS
from latentbench.flow.topology import Part
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array, Statistics
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_matching(study: FlowMatching, context: StageContext) -> Findings:
    """The findings of `flow_matching` (metrics.py): statistics per latent, drawn evenly from all layers."""
    maps: FlowMaps = context.subject()
    statistics = {}
    for domain in study.domains(context.experiment):
        active = _active(context, context.tokens(domain), maps.residual)
        statistics[domain] = _matching_statistics(study, context, maps, active, domain)
    return Findings(statistics, details={"layers": [layer.plain() for layer in layer_statistics(maps)]})


@torch.no_grad()
def _active(context: StageContext, tokens: EvalTokens, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
    """[width] bool by site: active at some ordinary token of the documents."""
    found: dict[Site, Tensor] = {}
    for group in groups(sites):
        found |= _active_in(context, tokens, group)
    return found


def _active_in(context: StageContext, tokens: EvalTokens, sites: list[Site]) -> dict[Site, Tensor]:
    # A function of its own, so that one group's SAEs are let go before the next group's are read.
    saes = held(context, sites)
    found = {site: torch.zeros(sae.width, dtype=torch.bool) for site, sae in saes.items()}
    counted = ordinary_tokens(context, TokenRows.of(tokens), saes)
    for batch in batches(context, TokenRows.of(tokens)):
        for site, codes in codes_at(context, saes, batch, counted).items():
            found[site][codes.indices[codes.values != 0].cpu()] = True
    return found


def _matching_statistics(
    study: FlowMatching, context: StageContext, maps: FlowMaps, active: dict[Site, Tensor], domain: str
) -> Statistics:
    parts = []
    for before, site in pairwise(maps.residual):
        found = origins(maps, site)
        assert found is not None  # `before` leads to it
        score = found.scores["residual"]
        matched = score >= maps.counts(maps.options.thresholds.cut, before)
        parts.append(torch.stack([score, matched, found.labels], 1)[active[site]])
    score, matched, label = torch.cat(parts).double().numpy().T
    drawn = np.random.default_rng(context.seed("latents", domain)).permutation(len(score))[: study.latents]
    score, matched, label = score[drawn], matched[drawn], label[drawn]
    return {
        "flow_matching.latents": np.ones(len(score)),
        "flow_matching.matched": matched,
        "flow_matching.cosine": score,
        **{f"flow_matching.{name}": (label == i).astype(np.float64) for i, name in enumerate(LABELS)},
    }


PARTS: tuple[Part, ...] = ("residual", "mlp", "attention")
"""In the order of their bits in a group's number."""


def measure_agreement(study: FlowAgreement, context: StageContext) -> Findings:
    """The findings of `flow_agreement` (metrics.py): statistics per document, the tests of every layer, and top tokens."""
    statistics: dict[str, dict[str, Array]] = {}
    values: list[MetricValue] = []
    tests: dict[str, list[Json]] = {}
    top: dict[Site, TopTokens] = {}
    for domain in study.domains(context.experiment):
        layers = list(_layers(study, context, domain, top))
        statistics[domain] = _summed([layer.sums for layer in layers])
        tests[domain] = [test for layer in layers for test in layer.tests]
        values += _separable(study, domain, tests[domain])
    tensors: dict[str, Tensor] = {f"{site}.top_tokens": found.ids for site, found in top.items()}
    seen = sorted({i for found in top.values() for i in found.ids.flatten().tolist()} - {-1})
    texts = {str(i): context.tokenizer().decode([i]) for i in seen}
    details: dict[str, Json] = {"tests": tests, "texts": texts}
    return Findings(statistics, tuple(values), details, tensors, units=context.units(statistics))


@dataclass(frozen=True)
class _Layer:
    """One residual site and what leads to it."""

    sums: dict[str, Array]
    tests: list[Json]


def _layers(study: FlowAgreement, context: StageContext, domain: str, top: dict[Site, TopTokens]) -> Iterator[_Layer]:
    """Layer by layer, so that only the codes of one layer and what leads to it are in memory; `top` is added to.

    The price: a residual site is read twice, as what is looked at and as what leads to the next.
    """
    maps: FlowMaps = context.subject()
    for target in maps.residual[1:]:
        sources = {link.part: link.source for link in maps.into(target)}
        found = firing(context, context.tokens(domain), [target, *sources.values()])
        for site, codes in found.codes.items():
            kept = top_tokens(codes, found.ids)
            top[site] = top[site].joined(kept) if site in top else kept
        matches = {part: maps.maps[target, site].indices.numpy() for part, site in sources.items()}
        groups = _groups(found, target, sources, matches)
        yield _Layer(
            _sums(found, groups, sources, matches), list(_tests(study, context, domain, maps, target, found, groups))
        )


def _groups(found: Firing, target: Site, sources: dict[Part, Site], matches: dict[Part, Integers]) -> csr_array:
    """[tokens, width]: at every firing 1 + the sum of 2, 4, 8 for predecessors R, M, A that fire too.

    The 1 keeps firings without any predecessor apart from no firing, which a sparse matrix has no entry for.
    """
    on = fired(found.codes[target])
    groups = on.copy()
    for part, site in sources.items():
        together = on.multiply(active_at(found.codes[site], matches[part]))
        groups = groups + csr_array(together, dtype=np.int8) * np.int8(2 << PARTS.index(part))
    return csr_array(groups)


def _sums(
    found: Firing, groups: csr_array, sources: dict[Part, Site], matches: dict[Part, Integers]
) -> dict[str, Array]:
    """Per document: firings, and those with each predecessor, with none, and as many as chance would give."""
    owners = found.documents[np.repeat(np.arange(groups.shape[0]), np.diff(groups.indptr))]

    def summed(values: Array) -> Array:
        return np.bincount(owners, weights=values, minlength=found.count).astype(np.float64)

    flags = groups.data.astype(np.int64)
    named: dict[str, Array] = {
        part: summed(((flags >> (1 + PARTS.index(part))) & 1).astype(np.float64)) for part in sources
    }
    # A predecessor is any of k matches: were these independent, all would be silent with probability Π (1 − rate).
    rates = firing_rates(found.codes[sources["residual"]])
    expected = 1 - np.prod(1 - np.where(matches["residual"] < 0, 0, rates[matches["residual"]]), axis=1)
    named |= {
        "residual_chance": summed(expected[groups.indices]),
        "nowhere": summed((flags == 1).astype(np.float64)),
        "firings": summed(np.ones(len(flags))),
    }
    return {f"flow_agreement.{name}": values for name, values in named.items()}


def _tests(
    study: FlowAgreement,
    context: StageContext,
    domain: str,
    maps: FlowMaps,
    target: Site,
    found: Firing,
    groups: csr_array,
) -> Iterator[Json]:
    """Mann-Whitney U between every two groups of latents on sampled tokens, on each score.

    A latent counts once in a group however often it fires there: its firings all have the same score, so they are no
    independent draws.
    """
    rng = np.random.default_rng(context.seed("group test", domain, str(target)))
    sampled = groups[_sampled(found.documents, study.tokens, rng)]
    members = {number: np.unique(sampled.indices[sampled.data == number]) for number in np.unique(sampled.data)}
    large = {number: latents for number, latents in members.items() if len(latents) >= study.minimum}
    known = origins(maps, target)
    assert known is not None  # `target` is not the first residual site
    for (one, first), (other, second) in combinations(sorted(large.items()), 2):
        for part, scores in known.scores.items():
            values = scores.numpy()
            p = float(mannwhitneyu(values[first], values[second]).pvalue)
            names = [_name(int(one)), _name(int(other))]
            yield {"site": str(target), "groups": names, "n": [len(first), len(second)], "part": part, "p": p}


def _sampled(documents: Integers, tokens: int, rng: np.random.Generator) -> Integers:
    """Rows of up to `tokens` random tokens of every document."""
    order = rng.permutation(len(documents))
    order = order[np.argsort(documents[order], kind="stable")]
    sizes = np.bincount(documents)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < tokens]


def _name(group: int) -> str:
    """`nowhere`, `residual`, `residual+mlp`, …"""
    return "+".join(part for bit, part in enumerate(PARTS) if (group >> (1 + bit)) & 1) or "nowhere"


def _summed(layers: list[dict[str, Array]]) -> dict[str, Array]:
    """Sums over layers; a layer without an MLP or attention adds nothing to theirs."""
    names = {name: None for layer in layers for name in layer}
    return {name: np.sum([layer[name] for layer in layers if name in layer], axis=0) for name in names}


def _separable(study: FlowAgreement, domain: str, tests: list[Json]) -> Iterator[MetricValue]:
    for part in PARTS:
        values = [test["p"] for test in tests if test["part"] == part]
        yield MetricValue(
            id=f"flow_agreement.separable_{part}",
            version=1,
            domain=domain,
            value=float(np.mean([p < study.alpha for p in values])) if values else None,
            null_reason=None if values else f"no two groups of {study.minimum} latents or more to compare",
            unit="fraction",
            higher_is_better=None,
            n=len(values),
        )


SHOWN = 8
"""Tokens kept per latent."""


@dataclass(frozen=True)
class TopTokens:
    """The `SHOWN` different tokens with the highest activation of each latent, highest first."""

    ids: Tensor
    """[width, SHOWN] int32 token ids; −1 where there are fewer."""
    values: Tensor
    """[width, SHOWN] float32 highest activation on that token; 0 beside −1."""

    def joined(self, other: TopTokens) -> TopTokens:
        """The top tokens of both together, of two domains for example."""
        ids, values = torch.cat([self.ids, other.ids], 1), torch.cat([self.values, other.values], 1)
        latents = torch.arange(len(ids))[:, None].expand_as(ids)
        on = (ids >= 0).flatten()
        entries = (x.flatten()[on].numpy() for x in (latents, ids, values))
        return _best(*entries, width=len(ids))


def top_tokens(codes: csr_array, ids: NDArray[np.int64]) -> TopTokens:
    """From codes [tokens, width] and the token ids [tokens]."""
    rows = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))
    return _best(codes.indices, ids[rows], codes.data, width=codes.shape[1])


def _best(latents: NDArray[Any], ids: NDArray[Any], values: NDArray[Any], *, width: int) -> TopTokens:
    """From one entry per active latent and token: first the strongest of every latent and token id, then of every latent."""
    order = np.lexsort((-values, ids, latents))
    latents, ids, values = latents[order], ids[order], values[order]
    new = np.ones(len(order), dtype=bool)  # the first, so strongest, of every pair of latent and token
    new[1:] = (latents[1:] != latents[:-1]) | (ids[1:] != ids[:-1])
    latents, ids, values = latents[new], ids[new], values[new]
    order = np.lexsort((ids, -values, latents))
    latents, ids, values = latents[order], ids[order], values[order]
    counts = np.bincount(latents, minlength=width)
    rank = np.arange(len(latents)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < SHOWN
    found = TopTokens(torch.full((width, SHOWN), -1, dtype=torch.int32), torch.zeros(width, SHOWN))
    place = torch.from_numpy(latents[kept]).long(), torch.from_numpy(rank[kept])
    found.ids[place], found.values[place] = torch.from_numpy(ids[kept]).int(), torch.from_numpy(values[kept]).float()
    return found
