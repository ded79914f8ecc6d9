"""Measures `steering_dose`: what the hooks of an intervention change on the documents of a domain, token by token."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from latentbench.activations.massive import OrdinaryTokens
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changing import StateChange, token_norms
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Stack
from latentbench.reconstruction.documents import DocumentBatch, DocumentSums, Domain
from latentbench.statistics.arrays import Statistics
from latentbench.steering.dose import NAME, SteeringDose
from latentbench.study.context import StageContext
from latentbench.study.study import Findings

_TOKENS_PER_FORWARD = 4096
"""Padded tokens per forward pass."""
_SUMS = ("tokens", "changed", "ratio", "length")


def measure_dose(study: SteeringDose, context: StageContext) -> Findings:
    """Per-document sums of every domain; none where the method changes no hidden state."""
    intervention = context.subject()
    if not changed_sites(intervention):
        reason = "the method changes no hidden state at tokens, so it has no dose"
        return Findings(reasons={f"{NAME}.{name}": reason for name in _SUMS})
    receipt = Receipt()
    domains = {name: _domain(context, name, intervention, receipt) for name in study.domains(context.experiment)}
    details: dict[str, Json] = {"receipt": {**vars(receipt), "dose": _dose(domains)}}
    return Findings(statistics=domains, details=details, units=context.units(domains))


def changed_sites(intervention: Intervention) -> tuple[Site, ...]:
    """Where hidden states are changed; empty for what changes none."""
    if isinstance(intervention, StateChange):
        return intervention.sites
    parts = intervention.parts if isinstance(intervention, Stack) else ()
    return tuple(dict.fromkeys(site for part in parts for site in changed_sites(part)))


def _domain(context: StageContext, domain: str, intervention: Intervention, receipt: Receipt) -> Statistics:
    """Per-document sums of one domain; what was done is added to `receipt`."""
    lm, tokens = context.model(), context.tokens(domain)
    texts = Domain(
        lm, tokens, _TOKENS_PER_FORWARD, partial(context.progress, part=domain), rule=context.experiment.token_rule
    )
    ordinary = OrdinaryTokens(limits=texts.limits(changed_sites(intervention)))
    sums = DocumentSums(texts.documents)

    @torch.no_grad()
    def add(batch: DocumentBatch) -> Receipt:
        found = _Seen(batch, ordinary)
        # A document has no prompt, so its first token is taken for one: scopes that begin with the answer then cover the rest.
        one = torch.ones(len(batch.ids), dtype=torch.long, device=batch.ids.device)
        with intervention.applied(lm, Layout(one, batch.real, watch=found.note)) as done:
            lm.model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        sums.put(batch, **found.sums)
        return done

    for done in texts.run(add):
        vars(receipt).update(vars(receipt + done))
    return {f"{NAME}.{name}": values for name, values in sums.arrays().items()}


class _Seen:
    """What was changed in one pass over a batch, summed over places and tokens."""

    def __init__(self, batch: DocumentBatch, ordinary: OrdinaryTokens) -> None:
        self._batch, self._ordinary = batch, ordinary
        zeros = torch.zeros(len(batch.ids), dtype=torch.float64, device=batch.ids.device)
        self.sums: dict[str, Tensor] = dict.fromkeys(_SUMS, zeros)
        """[B] float64 by name."""

    def note(self, site: Site, before: Tensor, after: Tensor, changed: Tensor) -> None:
        """A change from `before` to `after` [B, T, d] at the `changed` tokens [B, T]."""
        counted = self._batch.ordinary & self._ordinary.short(site, before)
        moved = counted & changed
        size = (after.double() - before.double()).norm(dim=-1)
        found = {
            "tokens": counted,
            "changed": moved,
            "ratio": moved * size / token_norms(before),
            "length": moved * size,
        }
        self.sums = {name: self.sums[name] + values.double().sum(1) for name, values in found.items()}


def _dose(domains: dict[str, Statistics]) -> float | None:
    """Over all domains together, as receipts are; None where no ordinary token was changed."""
    ratios, changed = (sum(float(d[f"{NAME}.{name}"].sum()) for d in domains.values()) for name in ("ratio", "changed"))
    return ratios / changed if changed else None
