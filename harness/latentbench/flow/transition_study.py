"""What `flow_transition` does: how much of a later layer's hidden states codes carried through a map explain.

One pass over a domain gives the errors of every kind of prediction and the variance around the domain's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.activity import Batch, TokenRows, batches, mean_active, ordinary_tokens, texts_of
from latentbench.flow.maps import FlowMaps, LatentMap
from latentbench.flow.matching import decoder_rows, thresholds
from latentbench.flow.metrics import FlowTransition, Scale
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.study.context import StageContext
from latentbench.study.study import Findings

Scales = dict[Scale, tuple[Tensor, Tensor]]
Pair = tuple[Site, Site]


def measure_transition(study: FlowTransition, context: StageContext) -> Findings:
    """The findings of `flow_transition` (metrics.py): sums per document over all layers, and the layers one by one."""
    maps: FlowMaps = context.subject()
    statistics: dict[str, dict[str, Array]] = {domain: {} for domain in study.domains(context.experiment)}
    details: dict[str, list[Json]] = {domain: [] for domain in statistics}
    means = _means(study, context, maps)
    carrying = {steps: _carrying(maps, steps) for steps in dict.fromkeys(study.steps)}
    total, done = len(statistics) * sum(map(len, carrying.values())), 0
    context.progress(0, total, "layers")
    for domain, found in statistics.items():
        for steps, chosen in carrying.items():
            layers = {}
            for pair, carried in chosen.items():
                layers[pair] = transition(context, domain, carried, *pair, _scales(study, context, *pair, means))
                done += 1
                context.progress(done, total, "layers")
            found |= {
                f"flow_transition.{name}.{steps}": sums for name, sums in _together(list(layers.values())).items()
            }
            details[domain] += [{"from": str(a), "to": str(b), **_explained(layer)} for (a, b), layer in layers.items()]
    return Findings(statistics, details={"layers": details}, units=context.units(statistics))


def _carrying(maps: FlowMaps, steps: int) -> dict[Pair, LatentMap]:
    """The map from every residual site to the one `steps` further on."""
    pairs = zip(maps.residual, maps.residual[steps:], strict=False)
    return {pair: maps.composed(*pair) for pair in pairs}


def _together(layers: list[dict[str, Tensor]]) -> dict[str, Array]:
    """[documents] by name: sums of all layers, each divided by its own variance."""
    weighed = [{name: sums / layer["variance"].sum() for name, sums in layer.items()} for layer in layers]
    return {name: torch.stack([layer[name] for layer in weighed]).sum(0).numpy() for name in weighed[0]}


@torch.no_grad()
def transition(
    context: StageContext, domain: str, carrying: LatentMap, before: Site, after: Site, scales: Scales
) -> dict[str, Tensor]:
    """[documents] float64 sums: squared errors by kind of prediction, and `variance` around the domain's mean."""
    tokens = context.tokens(domain)
    source, target = context.saes()[before], context.saes()[after]
    carrying = _on(carrying, context.device)
    sums, counted = _Sums(len(tokens.ids)), ordinary_tokens(context, TokenRows.of(tokens), (before, after))
    for whole in batches(context, TokenRows.of(tokens)):
        states = hidden_states(context.model().model, (before, after), whole.ids, whole.real.long())
        short = counted.short(before, states[before]) & counted.short(after, states[after])
        batch = replace(whole, ordinary=whole.ordinary & short)
        given, wanted = (states[site][batch.ordinary].float() for site in (before, after))
        codes = source.encode(given)
        copied = source.decode(codes)
        sums.add(batch, "own", wanted - target(wanted))
        sums.add(batch, "copied", wanted - copied)
        sums.add(batch, "encoded", wanted - target(copied))
        for name, scale in scales.items():
            sums.add(batch, f"carried_{name}", wanted - target.decode(carrying.carry(codes, scale)))
        sums.note_states(batch, wanted)
    return {**sums.errors, "variance": sums.variance()}


class _Sums:
    """Per-document sums, filled batch by batch in the order of the documents.

    In float64: `variance` is a small difference of large sums where the stream's mean is large, as it is in many models.
    """

    def __init__(self, documents: int) -> None:
        self.errors: dict[str, Tensor] = {}
        self._documents = documents
        self._vectors: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, batch: Batch, name: str, error: Tensor) -> None:
        """Squared errors of vectors [N, d], one per ordinary token."""
        per_row = _spread(batch, error.double().square().sum(1))
        self.errors.setdefault(name, torch.zeros(self._documents, dtype=torch.float64))[batch.rows] = per_row

    def note_states(self, batch: Batch, states: Tensor) -> None:
        """Keeps what `variance` needs: the mean is known only after the last batch, and states are too many to be kept."""
        rows = batch.ordinary.nonzero()[:, 0]
        wide = states.double()
        sums = wide.new_zeros(len(batch.ids), states.shape[1]).index_add_(0, rows, wide)
        self._vectors.append(sums.cpu())
        self._squares.append(_spread(batch, wide.square().sum(1)))
        self._counts.append(batch.ordinary.sum(1).cpu())

    def variance(self) -> Tensor:
        """Σ ‖h − h̄‖² = Σ ‖h‖² − 2 h̄ · Σ h + n ‖h̄‖² of each document, with the domain's mean h̄."""
        vectors, squares, counts = (torch.cat(x) for x in (self._vectors, self._squares, self._counts))
        mean = vectors.sum(0) / counts.sum().clamp_min(1)
        centred: Tensor = squares - 2 * (vectors @ mean) + counts * mean.square().sum()
        return centred


def _spread(batch: Batch, values: Tensor) -> Tensor:
    """[B] sums of values per ordinary token [N]."""
    rows = batch.ordinary.nonzero()[:, 0]
    sums: Tensor = values.new_zeros(len(batch.ids)).index_add_(0, rows, values)
    return sums.cpu()


def _means(study: FlowTransition, context: StageContext, maps: FlowMaps) -> dict[Site, Tensor]:
    """Mean activations at every residual site, where they are asked for."""
    return mean_active(context, texts_of(maps.options, context), maps.residual) if "activation" in study.scales else {}


def _scales(
    study: FlowTransition, context: StageContext, before: Site, after: Site, means: Mapping[Site, Tensor]
) -> Scales:
    """What activations are divided by at one site and multiplied by at the other, per way of scaling."""
    saes = context.saes()
    ways: dict[Scale, Callable[[Site], Tensor]] = {
        "norm": lambda site: _inverse_norms(saes[site], site),
        "threshold": lambda site: thresholds(saes[site], site),
        "activation": lambda site: means[site],
    }
    return {
        s: (ways[s](before).to(context.device), ways[s](after).to(context.device)) for s in dict.fromkeys(study.scales)
    }


def _inverse_norms(sae: SparseAutoencoder, site: Site) -> Tensor:
    norms: Tensor = decoder_rows(sae, site).float().norm(dim=1)
    return norms.clamp_min(1e-12).reciprocal()


def _explained(layer: dict[str, Tensor]) -> dict[str, float]:
    total = layer["variance"].sum()
    return {name: float(1 - sums.sum() / total) for name, sums in layer.items() if name != "variance"}


def _on(found: LatentMap, device: torch.device) -> LatentMap:
    return LatentMap(found.indices.to(device), found.scores.to(device), found.cosines.to(device), found.width)
