"""Measures `capability_cost`: the model with and without steering over the same documents, one batch after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Stack, Untouched
from latentbench.reconstruction.documents import DocumentBatch, DocumentSums, Domain
from latentbench.reconstruction.predictions import Predictions
from latentbench.statistics.arrays import Statistics
from latentbench.steering.capability_cost import NAME, CapabilityCost, at_scale
from latentbench.study.context import StageContext
from latentbench.study.study import Findings

TOKENS_PER_FORWARD = 4096
"""Padded tokens per forward pass."""


def measure_capability_cost(study: CapabilityCost, context: StageContext) -> Findings:
    """Per-document sums of every domain at the spec's own scale and at all `scales`.

    Raises InvalidInput for `scales` of what has none, CellFailed where a pass was not steered as asked.
    """
    steered: dict[float | None, Intervention] = {None: context.subject()}
    steered |= {scale: rescaled(steered[None], scale) for scale in study.scales}
    receipt = Receipt()
    domains = {domain: _domain(context, domain, steered, receipt) for domain in study.domains(context.experiment)}
    curves = {domain: _curve(statistics, study.scales) for domain, statistics in domains.items()}
    details: dict[str, Json] = {"curve": curves, "receipt": vars(receipt)}
    warnings = tuple(_warnings(steered[None], receipt))
    return Findings(statistics=domains, details=details, warnings=warnings, units=context.units(domains))


def rescaled(intervention: Intervention, scale: float) -> Intervention:
    """The same vectors at another scale. Raises InvalidInput for what has none (a prefix, an adapter)."""
    if isinstance(intervention, VectorInjection):
        return intervention.with_scale(scale)
    if isinstance(intervention, Stack):
        return Stack([rescaled(part, scale) for part in intervention.parts])
    raise InvalidInput("capability_cost: only steering vectors have a scale; leave `scales` out for this method")


def _domain(
    context: StageContext, domain: str, steered: Mapping[float | None, Intervention], receipt: Receipt
) -> Statistics:
    """Per-document sums of one domain; what was done at the spec's own scale is added to `receipt`."""
    lm, tokens = context.model(), context.tokens(domain)
    texts = Domain(lm, tokens, TOKENS_PER_FORWARD, partial(context.progress, part=domain))
    texts.passes = 1  # over the documents, for the progress report; the scales share it
    sums = DocumentSums(texts.documents)

    @torch.no_grad()
    def add(batch: DocumentBatch) -> Receipt:
        own = Receipt()
        # Every scale is compared on the very batch of the clean pass: in other batches other roundings would be its cost.
        clean = Predictions.of(document_logits(context, batch, Untouched())[0], batch.ids, batch.real)
        sums.put(batch, predictions=clean.mask.sum(1), ce_clean=clean.clean_loss())
        for scale, intervention in steered.items():
            logits, done = document_logits(context, batch, intervention)
            ce, kl = clean.losses(logits)
            if scale is None:
                own = done
            sums.put(batch, **{at_scale("ce", scale): ce, at_scale("kl", scale): kl})
        return own

    for done in texts.run(add):
        vars(receipt).update(vars(receipt + done))
    return {f"{NAME}.{name}": values for name, values in sums.arrays().items()}


def document_logits(context: StageContext, batch: DocumentBatch, intervention: Intervention) -> tuple[Tensor, Receipt]:
    """[B, T, vocabulary] logits of a batch of documents, and what the intervention did."""
    lm = context.model()
    # A document has no prompt, so its first token is taken for one: scopes that begin with the answer then cover the rest.
    layout = Layout(torch.ones(len(batch.ids), dtype=torch.long, device=batch.ids.device), batch.real)
    with intervention.applied(lm, layout) as receipt:
        logits: Tensor = lm.model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).logits
    return logits, receipt


def _curve(statistics: Statistics, scales: tuple[float, ...]) -> list[Json]:
    """Cost at every scale, ascending."""
    total = {name.removeprefix(f"{NAME}."): float(values.sum()) for name, values in statistics.items()}
    return [
        {
            "scale": scale,
            "ce_increase": (total[at_scale("ce", scale)] - total["ce_clean"]) / total["predictions"],
            "kl": total[at_scale("kl", scale)] / total["predictions"],
        }
        for scale in sorted(set(scales))
    ]


def _warnings(intervention: Intervention, receipt: Receipt) -> Iterator[str]:
    if intervention.prefix:
        yield "capability_cost: the prefix stands in prompts only and is not part of these texts"
    if receipt.tokens and not receipt.steered:
        yield "capability_cost: steering changed no token of these texts, which have no prompt; its scope is not theirs"
