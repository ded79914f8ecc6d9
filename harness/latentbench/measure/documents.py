"""One pass over a domain's documents that serves every SAE at every site of a model.

The clean forward is run once per batch of documents, zero- and mean-ablation once per site, and each SAE only encodes,
decodes and, where cross-entropy is wanted, resumes the forward behind its site. An SAE's numbers are the same whatever
else is measured in the pass; an SAE that raises is dropped with its exception and the others go on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.place import locate
from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens
from latentbench.measure.domain import Domain, Progress
from latentbench.measure.losses import Predictions
from latentbench.measure.site_statistics import Request, SiteStatistics, Wanted
from latentbench.measure.statistics import Baseline, Measurement

if TYPE_CHECKING:
    from latentbench_adapters.protocols import LanguageModel

__all__ = ["Progress", "Request", "Results", "measure"]

_TOKENS_PER_FORWARD = 4096


@dataclass(frozen=True)
class Results:
    """What a pass over one domain gave."""

    baselines: dict[Site, Baseline]
    """Of every site asked for, those already known included."""
    measurements: list[Measurement]
    """One per SAE and budget; none of an SAE that failed."""
    failures: dict[str, Exception] = field(default_factory=dict)
    """Why an SAE, by name, has no measurements; the traceback is in the exception's notes."""


@torch.no_grad()
def measure(
    language_model: LanguageModel,
    tokens: EvalTokens,
    requests: Sequence[Request] = (),
    *,
    baselines: Mapping[Site, Baseline] | None = None,
    sites: Collection[Site] = (),
    splice_sites: Collection[Site] = (),
    forward_tokens: int = _TOKENS_PER_FORWARD,
    progress: Progress | None = None,
) -> Results:
    """Per-document statistics of one domain for all `requests`, and the baselines of their sites.

    `baselines` are those already known: they are not computed again, unless one lacks the cross-entropies that a
    request at its site splices for. `sites` and `splice_sites` ask for baselines (with cross-entropies) whether or not
    an SAE is there. Documents are run `forward_tokens` padded tokens at a time, fewer for large vocabularies; the
    results do not depend on it. Raises InvalidInput for a site the model does not have.
    """
    if len({request.name for request in requests}) < len(requests):
        raise ValueError("two requests have the same name")
    splices = _splices(requests, sites, splice_sites)
    for site in splices:
        locate(language_model.model, site)
    known = {site: baseline for site, baseline in (baselines or {}).items() if site in splices}
    missing = {site for site, splice in splices.items() if site not in known or (splice and not known[site].spliced)}
    domain = Domain(language_model, tokens, forward_tokens, progress)
    unseen = [site for site in splices if site not in known]
    domain.passes = int(bool(unseen)) + int(bool(missing or requests))
    means = {site: baseline.mean for site, baseline in known.items()} | domain.means(unseen)
    wanted = {site: Wanted(site in missing, site in missing and splice) for site, splice in splices.items()}
    gathering = [SiteStatistics(site, means[site], domain.documents, wanted[site], requests) for site in splices]
    _gather(domain, [statistics for statistics in gathering if not statistics.idle])
    return _results(gathering, known)


def _splices(requests: Sequence[Request], sites: Collection[Site], splice_sites: Collection[Site]) -> dict[Site, bool]:
    """Every site a baseline is needed of, and whether with cross-entropies."""
    spliced = {*splice_sites, *(request.site for request in requests if request.splice)}
    everywhere = (*sites, *splice_sites, *(request.site for request in requests))
    return {site: site in spliced for site in everywhere}


def _gather(domain: Domain, gathering: Sequence[SiteStatistics]) -> None:
    reads = {site for statistics in gathering for site in statistics.reads}
    splices = any(statistics.splices for statistics in gathering)
    for batch in domain.batches() if gathering else ():
        attention_mask, clean = batch.real.long(), None
        if splices:
            states, logits = hidden_states_and_logits(domain.model, reads, batch.ids, attention_mask)
            clean = Predictions.of(logits, batch.ids, batch.real)
            del logits
        else:
            states = hidden_states(domain.model, reads, batch.ids, attention_mask)
        for statistics in gathering:
            statistics.add(domain.model, batch, states, clean)


def _results(gathering: Sequence[SiteStatistics], known: Mapping[Site, Baseline]) -> Results:
    baselines = {statistics.site: statistics.baseline() or known[statistics.site] for statistics in gathering}
    measurements = [measurement for statistics in gathering for measurement in statistics.measurements()]
    failures = {name: error for statistics in gathering for name, error in statistics.failures.items()}
    return Results(baselines, measurements, failures)
