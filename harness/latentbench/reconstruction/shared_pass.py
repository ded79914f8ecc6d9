"""One pass over a domain's documents that serves every SAE at every site of a model.

The clean forward is run once per batch of documents, zero- and mean-ablation once per site, and each SAE only encodes,
decodes and, where cross-entropy is wanted, resumes the forward behind its site. An SAE's numbers are the same whatever
else is measured in the pass; an SAE that raises is dropped with its exception and the others go on.

From bottom to top: the sums of one SAE (`Reconstructions`), those of a site (`SiteStatistics`), the pass (`measure`). What the
statistics are is defined in harness/latentbench/reconstruction/statistics.py.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latentbench.activations.batching import TOKENS_PER_FORWARD
from latentbench.activations.fitting import out_of_memory
from latentbench.activations.massive import OrdinaryTokens
from latentbench.activations.residual import compared_part, hook_point
from latentbench.activations.resume import resumed_logits
from latentbench.activations.tokens import EvalTokens
from latentbench.core.border import contained
from latentbench.core.errors import InvalidInput
from latentbench.core.plugins import implementation
from latentbench.core.progress import Progress
from latentbench.core.sites import PAIR, Site, resumed_from, written_at
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.metrics.base import Statistic, at_budget
from latentbench.reconstruction.documents import (
    DocumentBatch,
    DocumentStates,
    DocumentSums,
    Domain,
    per_document,
    squared_norms,
    vector_sums,
)
from latentbench.reconstruction.predictions import Predictions
from latentbench.reconstruction.statistics import TOKEN_STATISTICS, Baseline, Measurement, TokenBatch
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.statistics.arrays import Array

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel


class Reconstructions:
    """Everything measured of one SAE at one budget on one domain; `declared` is what metrics bring along."""

    def __init__(
        self, sae: SparseAutoencoder, budget: int | None, documents: int, declared: Sequence[Statistic] = ()
    ) -> None:
        self._sae, self._budget, self._declared = sae, budget, declared
        self._sums = DocumentSums(documents)
        self._firing = torch.zeros(sae.width, dtype=torch.int64)
        self._latest = self._firing

    def add(self, batch: DocumentBatch, states: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        """Takes what was read of the batch's ordinary tokens, float32, and returns their reconstructions [N, d].

        The SAE reads `states` [N, d], and is compared with `x` [N, d]: the same but for transcoders. `mean` [d] is the
        domain's. Raises whatever the SAE or a declared statistic raises.
        """
        codes = self._sae.encode(states, self._budget)
        reconstruction = self._sae.reconstruct(states, codes).to(x.dtype)
        if reconstruction.shape != x.shape:
            raise ValueError(f"reconstructions of shape {tuple(reconstruction.shape)} for {tuple(x.shape)} given")
        self._latest = codes.firing_counts(self._sae.width).cpu()
        if len(self._latest) > self._sae.width:
            raise ValueError(f"codes name latent {len(self._latest) - 1}, and the SAE has {self._sae.width}")
        tokens = TokenBatch(x, mean, reconstruction, codes, batch.token_ids, batch.positions)
        values = {name: statistic(tokens) for name, statistic in TOKEN_STATISTICS.items()}
        values |= {statistic.name: _declared_values(statistic, tokens) for statistic in self._declared}
        sums = {name: per_document(found, batch.ordinary) for name, found in values.items()}
        self._sums.put(batch, **sums, error=vector_sums(tokens.error, batch))
        return reconstruction

    def add_losses(self, batch: DocumentBatch, cross_entropy: Tensor, divergence: Tensor) -> None:
        """Takes the losses [B] with the reconstructions spliced in."""
        self._sums.put(batch, ce_sae=cross_entropy, kl_sae=divergence)

    def settle(self) -> None:
        """Counts what fired in the batch that was added last. Sums per document can be put down twice, this cannot."""
        self._firing = self._firing + self._latest

    def finished(self, name: str, tokens: Tensor) -> Measurement:
        """The measurement, given the number of ordinary tokens [documents]. To be called once."""
        residual = _residual_variance(self._sums["squared_error"], self._sums.pop("error"), tokens)
        sums = self._sums.arrays() | {"residual_variance": residual}
        statistics = {at_budget(key, self._budget): values for key, values in sums.items()}
        return Measurement(name, self._budget, statistics, self._firing.numpy())


def _declared_values(statistic: Statistic, tokens: TokenBatch) -> Tensor:
    """What a statistic from outside gives, [N]. It may be anyone's, so its shape is not taken on trust."""
    values = implementation(statistic.implementation)(tokens)
    count = len(tokens.x)
    if not isinstance(values, Tensor) or values.shape != (count,) or values.is_complex():
        given = (
            f"a tensor {list(values.shape)} of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        )
        raise InvalidInput(
            f"the statistic {statistic.name!r} ({statistic.implementation}) gave {given}; it must give one real number "
            f"for each token, here a tensor [{count}]"
        )
    return values.to(tokens.x.device)


def _residual_variance(squared_error: Tensor, errors: Tensor, tokens: Tensor) -> Array:
    """Σ‖e − ē‖² of each document, from Σ‖e‖² [documents], Σe [documents, d] and its number of tokens [documents].

    Expanded about 0 in float64, because ē is known only after the last batch.
    """
    mean_error = errors.sum(0) / tokens.sum().clamp_min(1)
    residual = squared_error - 2 * errors @ mean_error + tokens * mean_error.square().sum()
    array: Array = residual.clamp_min(0).numpy()
    return array


Losses = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Replacements [N, d] of the ordinary tokens' hidden states to cross-entropy and KL divergence [B] of each document."""


@dataclass(frozen=True)
class MeasurementRequest:
    """What is wanted of one SAE."""

    name: str
    """Unique in a pass."""
    sae: SparseAutoencoder
    """Moved to the model's device and put into evaluation mode."""
    site: Site
    budgets: tuple[int | None, ...] = (None,)
    splice: bool = False
    """Whether the reconstruction is also spliced into the model, for `ce_sae` and `kl_sae`."""
    statistics: tuple[Statistic, ...] = ()
    """What metrics bring along, measured at each of the budgets."""


@dataclass(frozen=True)
class WantedBaseline:
    """Which shared statistics of a site are still to be computed."""

    baseline: bool
    spliced: bool
    """Cross-entropies and divergences too."""


class SiteStatistics:
    """Gathers, batch by batch, everything wanted at one site."""

    def __init__(
        self,
        site: Site,
        mean: Array,
        counted: OrdinaryTokens,
        documents: int,
        wanted: WantedBaseline,
        requests: Sequence[MeasurementRequest],
    ) -> None:
        self.site, self._mean, self._counted, self._wanted = site, torch.from_numpy(mean), counted, wanted
        self._requests = [request for request in requests if request.site == site]
        self._sums = DocumentSums(documents)
        self._gathered = {
            (r.name, b): Reconstructions(r.sae, b, documents, r.statistics) for r in self._requests for b in r.budgets
        }
        self.failures: dict[str, Exception] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is to be gathered here."""
        return not (self._wanted.baseline or self._requests)

    @property
    def splices(self) -> bool:
        """Whether the model's logits are needed."""
        return self._wanted.spliced or any(request.splice for request in self._requests)

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites whose hidden states `add` takes."""
        return (self.site, *resumed_from(self.site)) if self.splices else (self.site,)

    def add(
        self, model: nn.Module, batch: DocumentBatch, states: Mapping[Site, Tensor], clean: Predictions | None
    ) -> None:
        """Takes the clean hidden states [B, T, d] of a batch, and the clean predictions if anything splices."""
        words = batch.ordinary.sum(1)
        batch = batch.at(self.site, states[self.site], self._counted)
        read = states[self.site][batch.ordinary].float()
        x = compared_part(self.site, read)
        self._mean = self._mean.to(x.device)
        losses = None if clean is None else _losses(model, self.site, batch, states, clean)
        self._sums.put(batch, tokens=batch.ordinary.sum(1), massive=words - batch.ordinary.sum(1))
        if self._wanted.baseline:
            self._add_baseline(batch, x)
        if self._wanted.spliced and losses is not None and clean is not None:
            self._add_ablations(batch, x, losses, clean)
        for request in self._requests:
            if request.name not in self.failures:
                self._add_isolated(request, batch, read, x, losses)

    def settle(self) -> None:
        """To be called once after each batch that is through at all sites: one that runs out of memory is added again."""
        for (name, _), reconstructions in self._gathered.items():
            if name not in self.failures:
                reconstructions.settle()

    def baseline(self, named: Tensor) -> Baseline | None:
        """The site's baseline, None if it was not wanted; `named` [documents] are the tokens that the rule names."""
        if not self._wanted.baseline:
            return None
        statistics = self._sums.arrays() | {"named": named.numpy()}
        return Baseline(self.site, self._mean.cpu().numpy(), statistics, self._counted.limits[self.site])

    def measurements(self) -> Iterator[Measurement]:
        """The measurements of all SAEs that did not fail. To be called once."""
        for (name, _), reconstructions in self._gathered.items():
            if name not in self.failures:
                yield reconstructions.finished(name, self._sums["tokens"])

    def _add_baseline(self, batch: DocumentBatch, x: Tensor) -> None:
        self._sums.put(
            batch,
            elements=batch.ordinary.sum(1) * x.shape[1],
            predictions=batch.real.sum(1) - 1,
            squared_norm=per_document(squared_norms(x), batch.ordinary),
            total_variance=per_document(squared_norms(x - self._mean), batch.ordinary),
        )

    def _add_ablations(self, batch: DocumentBatch, x: Tensor, losses: Losses, clean: Predictions) -> None:
        ce_zero, kl_zero = losses(torch.zeros_like(x))
        ce_mean, kl_mean = losses(self._mean.expand_as(x))
        ce_clean = clean.clean_loss()
        self._sums.put(batch, ce_clean=ce_clean, ce_zero=ce_zero, ce_mean=ce_mean, kl_zero=kl_zero, kl_mean=kl_mean)

    def _add_isolated(
        self, request: MeasurementRequest, batch: DocumentBatch, read: Tensor, x: Tensor, losses: Losses | None
    ) -> None:
        try:
            self._add_sae(request, batch, read, x, losses)
        except BaseException as error:  # an SAE may be anyone's and raise anything; the others go on
            if out_of_memory(error) and len(batch.documents) > 1:
                raise  # fewer documents may fit
            kept = contained(error)
            # The traceback as text: its frames would keep this batch's tensors alive.
            kept.add_note(traceback.format_exc())
            kept.__cause__ = None
            self.failures[request.name] = kept.with_traceback(None)

    def _add_sae(
        self, request: MeasurementRequest, batch: DocumentBatch, read: Tensor, x: Tensor, losses: Losses | None
    ) -> None:
        if request.sae.paired != (self.site.point == PAIR):
            raise InvalidInput(
                f"{self.site} is read by {'' if self.site.point == PAIR else 'SAEs, not by '}transcoders"
            )
        # Here and not in front of the pass: an SAE that cannot be moved costs itself alone.
        request.sae.to(x.device).eval()
        for budget in request.budgets:
            gathered = self._gathered[request.name, budget]
            reconstruction = gathered.add(batch, read, x, self._mean)
            if request.splice and losses is not None:
                gathered.add_losses(batch, *losses(reconstruction))


def _losses(
    model: nn.Module, site: Site, batch: DocumentBatch, states: Mapping[Site, Tensor], clean: Predictions
) -> Losses:
    entrance = next((states[entering] for entering in resumed_from(site)), None)

    def losses(replacements: Tensor) -> tuple[Tensor, Tensor]:
        # Special, named and massive tokens keep their own hidden states in every substitution.
        hidden = compared_part(site, states[site]).clone()
        hidden[batch.ordinary] = replacements.to(hidden.dtype)
        return clean.losses(resumed_logits(model, written_at(site), hidden, batch.ids, batch.real.long(), entrance))

    return losses


@dataclass(frozen=True)
class PassResults:
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
    requests: Sequence[MeasurementRequest] = (),
    *,
    baselines: Mapping[Site, Baseline] | None = None,
    sites: Collection[Site] = (),
    splice_sites: Collection[Site] = (),
    forward_tokens: int = TOKENS_PER_FORWARD,
    progress: Progress | None = None,
    rule: TokenRule = EVERY_TOKEN,
    states: DocumentStates | None = None,
) -> PassResults:
    """Per-document statistics of one domain for all `requests`, and the baselines of their sites.

    `rule` says which tokens count; known baselines were measured under it. `states` gives the hidden states of the documents
    where they need not be computed: those of batches of `forward_tokens`, at all sites that the pass reads.

    `baselines` are those already known: they are not computed again, unless one lacks the cross-entropies that a
    request at its site splices for. `sites` and `splice_sites` ask for baselines (with cross-entropies) whether or not
    an SAE is there. Documents are run `forward_tokens` padded tokens at a time, fewer for large vocabularies; the
    results do not depend on it. Raises InvalidInput for a site the model does not have.
    """
    if len({request.name for request in requests}) < len(requests):
        raise ValueError("two requests have the same name")
    splices = _splices(requests, sites, splice_sites)
    for site in splices:
        hook_point(language_model.model, site)
    known = {site: baseline for site, baseline in (baselines or {}).items() if site in splices}
    missing = {site for site, splice in splices.items() if site not in known or (splice and not known[site].spliced)}
    domain = Domain(language_model, tokens, forward_tokens, progress, rule, states)
    # Σ‖x − x̄‖² and the ablation with x̄ need the mean before the first batch, which costs a pass where it is not known.
    unseen = [site for site in splices if site not in known]
    domain.passes = int(bool(unseen)) + int(bool(missing or requests))
    limits = {site: baseline.limit for site, baseline in known.items()} | domain.limits(unseen)
    counted = OrdinaryTokens(limits=limits)
    means = {site: baseline.mean for site, baseline in known.items()} | domain.means(unseen, counted)
    wanted = {site: WantedBaseline(site in missing, site in missing and splice) for site, splice in splices.items()}
    gathering = [
        SiteStatistics(site, means[site], counted, domain.documents, wanted[site], requests) for site in splices
    ]
    _gather(domain, [statistics for statistics in gathering if not statistics.idle])
    return _results(gathering, known, domain.named)


def _splices(
    requests: Sequence[MeasurementRequest], sites: Collection[Site], splice_sites: Collection[Site]
) -> dict[Site, bool]:
    """Every site a baseline is needed of, and whether with cross-entropies."""
    spliced = {*splice_sites, *(request.site for request in requests if request.splice)}
    everywhere = (*sites, *splice_sites, *(request.site for request in requests))
    return {site: site in spliced for site in everywhere}


def _gather(domain: Domain, gathering: Sequence[SiteStatistics]) -> None:
    reads = {site for statistics in gathering for site in statistics.reads}
    splices = any(statistics.splices for statistics in gathering)

    def add(batch: DocumentBatch) -> None:
        clean = None
        if splices:
            states, logits = domain.states.read_with_logits(batch, reads)
            clean = Predictions.of(logits, batch.ids, batch.real)
            del logits  # as many as the predictions made of them; the resumed forwards below make their own
        else:
            states = domain.states.read(batch, reads)
        for statistics in gathering:
            statistics.add(domain.model, batch, states, clean)
        for statistics in gathering:
            statistics.settle()

    for _ in domain.run(add) if gathering else ():
        pass


def _results(gathering: Sequence[SiteStatistics], known: Mapping[Site, Baseline], named: Tensor) -> PassResults:
    baselines = {statistics.site: statistics.baseline(named) or known[statistics.site] for statistics in gathering}
    measurements = [measurement for statistics in gathering for measurement in statistics.measurements()]
    failures = {name: error for statistics in gathering for name, error in statistics.failures.items()}
    return PassResults(baselines, measurements, failures)
