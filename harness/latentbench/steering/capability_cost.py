"""`capability_cost`: what steering costs on text that has nothing to do with what it is for.

On the documents of each evaluation domain, every prediction of a real token, in nats (harness/latentbench/reconstruction/documents.py):

===============  ===========================================  ======
number           formula                                      better
===============  ===========================================  ======
`ce_clean`       CE of the model without steering             (the model's)
`ce_increase`    CE_steered − CE_clean, per token             lower
`kl`             mean KL(model ‖ steered model), per token    lower
===============  ===========================================  ======

The same at every one of `scales` (with the parameter `scale`) gives the frontier against accuracy; the clean model runs
once for all of them. A text has no prompt: with the scopes `generated` and `first` its first token counts as the prompt,
and with `prompt` nothing is changed. A prefix stands in prompts only and costs nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from latentbench.core.spec_model import Json
from latentbench.mechanism.metrics.study import methods_without_vectors
from latentbench.metrics.base import Display, Estimator
from latentbench.statistics.arrays import Array, Statistics
from latentbench.study.study import Findings, Study

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.paths import Roots
    from latentbench.interventions.intervention import Intervention, Receipt
    from latentbench.reconstruction.documents import DocumentBatch
    from latentbench.study.context import ExperimentView, StageContext

NAME = "capability_cost"
_TOKENS_PER_FORWARD = 4096


class CapabilityCost(Study):
    """Cross-entropy and KL divergence that steering causes on neutral text, against its scale."""

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    displays: ClassVar[Mapping[str, Display]] = {"capability_cost.kl": Display("KL to the unsteered", 110)}

    metric: Literal["capability_cost"] = "capability_cost"
    scales: Annotated[tuple[float, ...], Field(max_length=100)] = ()
    """Scales at which to measure besides the spec's own."""

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        none = methods_without_vectors(experiment.steering) if self.scales else []
        return tuple(f"`scales` are those of steering vectors; the method {method!r} adds none" for method in none)

    def numbers(self) -> tuple[Estimator, ...]:
        clean = _estimator("ce_clean", None, ("ce_clean",), {})
        return (clean, *_costs(None), *(cost for scale in dict.fromkeys(self.scales) for cost in _costs(scale)))

    def run(self, lab: StageContext) -> Findings:
        from latentbench.interventions.intervention import Receipt

        steered: dict[float | None, Intervention] = {None: lab.subject()}
        steered |= {scale: rescaled(steered[None], scale) for scale in self.scales}
        receipt = Receipt()
        domains = {domain: _domain(lab, domain, steered, receipt) for domain in self.domains(lab.experiment)}
        curves = {domain: _curve(statistics, self.scales) for domain, statistics in domains.items()}
        details: dict[str, Json] = {"curve": curves, "receipt": vars(receipt)}
        warnings = tuple(_warnings(steered[None], receipt))
        return Findings(statistics=domains, details=details, warnings=warnings, units=lab.units(domains))


def rescaled(intervention: Intervention, scale: float) -> Intervention:
    """The same vectors at another scale. Raises InvalidInput for what has none (a prefix, an adapter)."""
    from latentbench.core.errors import InvalidInput
    from latentbench.interventions.injection import VectorInjection
    from latentbench.interventions.intervention import Stack

    if isinstance(intervention, VectorInjection):
        return VectorInjection(intervention.vectors, scale, intervention.scope, intervention.relative)
    if isinstance(intervention, Stack):
        return Stack([rescaled(part, scale) for part in intervention.parts])
    raise InvalidInput("capability_cost: only steering vectors have a scale; leave `scales` out for this method")


def _mean(total: Array, n: Array) -> Array:
    return total / n


def _increase(steered: Array, clean: Array, n: Array) -> Array:
    return (steered - clean) / n


def _estimator(name: str, better: bool | None, statistics: tuple[str, ...], params: Mapping[str, Any]) -> Estimator:
    inputs = tuple(f"{NAME}.{statistic}" for statistic in (*statistics, "predictions"))
    formula = _increase if len(statistics) == 2 else _mean
    return Estimator(f"{NAME}.{name}", 1, "nats/token", better, inputs, formula, params=params)


def _costs(scale: float | None) -> tuple[Estimator, Estimator]:
    params = {} if scale is None else {"scale": scale}
    return (
        _estimator("ce_increase", False, (_at("ce", scale), "ce_clean"), params),
        _estimator("kl", False, (_at("kl", scale),), params),
    )


def _at(name: str, scale: float | None) -> str:
    """Name of a statistic at a scale; at the spec's own it has none."""
    return name if scale is None else f"{name}[{scale!r}]"


def _domain(
    lab: StageContext, domain: str, steered: Mapping[float | None, Intervention], receipt: Receipt
) -> Statistics:
    """Per-document sums of one domain; what was done at the spec's own scale is added to `receipt`."""
    import torch

    from latentbench.interventions.intervention import Untouched
    from latentbench.reconstruction.documents import DocumentSums, Domain, Predictions

    lm, tokens = lab.model(), lab.tokens(domain)
    texts = Domain(lm, tokens, _TOKENS_PER_FORWARD, lab.progress)
    texts.passes = 1
    sums = DocumentSums(texts.documents)
    for batch in texts.batches():
        with torch.no_grad():
            clean = Predictions.of(_logits(lab, batch, Untouched())[0], batch.ids, batch.real)
            sums.put(batch, predictions=clean.mask.sum(1), ce_clean=clean.clean_loss())
            for scale, intervention in steered.items():
                logits, done = _logits(lab, batch, intervention)
                ce, kl = clean.losses(logits)
                if scale is None:
                    vars(receipt).update(vars(receipt + done))
                sums.put(batch, **{_at("ce", scale): ce, _at("kl", scale): kl})
    return {f"{NAME}.{name}": values for name, values in sums.arrays().items()}


def _logits(lab: StageContext, batch: DocumentBatch, intervention: Intervention) -> tuple[Tensor, Receipt]:
    """[B, T, vocabulary] logits of a batch of documents, and what the intervention did."""
    import torch

    from latentbench.interventions.intervention import Layout

    lm = lab.model()
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
            "ce_increase": (total[_at("ce", scale)] - total["ce_clean"]) / total["predictions"],
            "kl": total[_at("kl", scale)] / total["predictions"],
        }
        for scale in sorted(set(scales))
    ]


def _warnings(intervention: Intervention, receipt: Receipt) -> Iterator[str]:
    if intervention.prefix:
        yield "capability_cost: the prefix stands in prompts only and is not part of these texts"
    if receipt.tokens and not receipt.steered:
        yield "capability_cost: steering changed no token of these texts, which have no prompt; its scope is not theirs"
