"""Matching rate, mean score and origins of the latents that fire on a domain."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from latentbench.activations.tokens import EvalTokens
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.activity import TokenRows, batches, codes_at, groups, held
from latentbench.flow.labels import LABELS, layer_statistics, origins
from latentbench.flow.maps import FlowMaps
from latentbench.flow.metrics import FlowMatching
from latentbench.statistics.arrays import Statistics
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_matching(study: FlowMatching, context: StageContext) -> Findings:
    """See harness/latentbench/flow/metrics.py."""
    maps: FlowMaps = context.subject()
    statistics = {}
    for domain in study.domains(context.experiment):
        fired = fires(context, context.tokens(domain), maps.residual)
        statistics[domain] = _statistics(study, context, maps, fired, domain)
    return Findings(statistics, details={"layers": layers(maps)})


@torch.no_grad()
def fires(context: StageContext, tokens: EvalTokens, sites: tuple[Site, ...]) -> dict[Site, torch.Tensor]:
    """[width] bool by site: active at some ordinary token of the documents."""
    found: dict[Site, torch.Tensor] = {}
    for group in groups(sites):
        found |= _fires(context, tokens, group)
    return found


def _fires(context: StageContext, tokens: EvalTokens, sites: list[Site]) -> dict[Site, torch.Tensor]:
    saes = held(context, sites)
    found = {site: torch.zeros(sae.width, dtype=torch.bool) for site, sae in saes.items()}
    for batch in batches(context, TokenRows.of(tokens)):
        for site, codes in codes_at(context, saes, batch).items():
            found[site][codes.indices[codes.values != 0].cpu()] = True
    return found


def layers(maps: FlowMaps) -> list[Json]:
    """`layer_statistics` as JSON, over whole dictionaries."""
    return [{**vars(found), "site": str(found.site), "shares": dict(found.shares)} for found in layer_statistics(maps)]


def _statistics(
    study: FlowMatching, context: StageContext, maps: FlowMaps, fired: dict[Site, torch.Tensor], domain: str
) -> Statistics:
    parts = []
    for before, site in pairwise(maps.residual):
        found = origins(maps, site)
        assert found is not None
        score = found.scores["residual"]
        matched = score >= maps.counts(maps.options.thresholds.cut, before)
        parts.append(torch.stack([score, matched, found.labels], 1)[fired[site]])
    score, matched, label = torch.cat(parts).double().numpy().T
    drawn = np.random.default_rng(context.seed("latents", domain)).permutation(len(score))[: study.latents]
    score, matched, label = score[drawn], matched[drawn], label[drawn]
    return {
        "flow_matching.latents": np.ones(len(score)),
        "flow_matching.matched": matched,
        "flow_matching.cosine": score,
        **{f"flow_matching.{name}": (label == i).astype(np.float64) for i, name in enumerate(LABELS)},
    }
