"""What is gathered at one site in the course of a pass: its baseline and the reconstructions of its SAEs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentbench.activations.resume import needs_block_input, resumed_logits
from latentbench.activations.site import Site
from latentbench.border import contained
from latentbench.measure.batches import DocumentBatch, DocumentSums, per_document, squared_norms
from latentbench.measure.losses import Predictions
from latentbench.measure.reconstruction import Reconstructions
from latentbench.measure.statistics import Baseline, Measurement
from latentbench.metrics.base import Array
from latentbench.sae.base import SparseAutoencoder

Losses = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Replacements [N, d] of the ordinary tokens' hidden states to cross-entropy and KL divergence [B] of each document."""


@dataclass(frozen=True)
class Request:
    """What is wanted of one SAE."""

    name: str
    """Unique in a pass."""
    sae: SparseAutoencoder
    """Moved to the model's device and put into evaluation mode."""
    site: Site
    budgets: tuple[int | None, ...] = (None,)
    splice: bool = False
    """Whether the reconstruction is also spliced into the model, for `ce_sae` and `kl_sae`."""


@dataclass(frozen=True)
class Wanted:
    """Which shared statistics of a site are still to be computed."""

    baseline: bool
    spliced: bool
    """Cross-entropies and divergences too."""


class SiteStatistics:
    """Gathers, batch by batch, everything wanted at one site."""

    def __init__(self, site: Site, mean: Array, documents: int, wanted: Wanted, requests: Sequence[Request]) -> None:
        self.site, self._mean, self._wanted = site, torch.from_numpy(mean), wanted
        self._requests = [request for request in requests if request.site == site]
        self._sums = DocumentSums(documents)
        self._gathered = {(r.name, b): Reconstructions(r.sae, b, documents) for r in self._requests for b in r.budgets}
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
        entrance = Site(index=self.site.index, point="resid_pre")
        return (self.site, entrance) if self.splices and needs_block_input(self.site) else (self.site,)

    def add(
        self, model: nn.Module, batch: DocumentBatch, states: Mapping[Site, Tensor], clean: Predictions | None
    ) -> None:
        """Takes the clean hidden states [B, T, d] of a batch, and the clean predictions if anything splices."""
        x = states[self.site][batch.ordinary].float()
        self._mean = self._mean.to(x.device)
        losses = None if clean is None else _losses(model, self.site, batch, states, clean)
        self._sums.put(batch, tokens=batch.ordinary.sum(1))
        if self._wanted.baseline:
            self._add_baseline(batch, x)
        if self._wanted.spliced and losses is not None and clean is not None:
            self._add_ablations(batch, x, losses, clean)
        for request in self._requests:
            if request.name not in self.failures:
                self._add_isolated(request, batch, x, losses)

    def baseline(self) -> Baseline | None:
        """The site's baseline, None if it was not wanted."""
        return Baseline(self.site, self._mean.cpu().numpy(), self._sums.arrays()) if self._wanted.baseline else None

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

    def _add_isolated(self, request: Request, batch: DocumentBatch, x: Tensor, losses: Losses | None) -> None:
        try:
            self._add_sae(request, batch, x, losses)
        except BaseException as error:  # an SAE may be anyone's and raise anything; the others go on
            kept = contained(error)
            # The traceback as text: its frames would keep this batch's tensors alive.
            kept.add_note(traceback.format_exc())
            kept.__cause__ = None
            self.failures[request.name] = kept.with_traceback(None)

    def _add_sae(self, request: Request, batch: DocumentBatch, x: Tensor, losses: Losses | None) -> None:
        request.sae.to(x.device).eval()
        for budget in request.budgets:
            gathered = self._gathered[request.name, budget]
            reconstruction = gathered.add(batch, x, self._mean)
            if request.splice and losses is not None:
                gathered.add_losses(batch, *losses(reconstruction))


def _losses(
    model: nn.Module, site: Site, batch: DocumentBatch, states: Mapping[Site, Tensor], clean: Predictions
) -> Losses:
    entrance = states[Site(index=site.index, point="resid_pre")] if needs_block_input(site) else None

    def losses(replacements: Tensor) -> tuple[Tensor, Tensor]:
        # Special tokens keep their own hidden states in every substitution.
        hidden = states[site].clone()
        hidden[batch.ordinary] = replacements.to(hidden.dtype)
        return clean.losses(resumed_logits(model, site, hidden, batch.ids, batch.real.long(), entrance))

    return losses
