"""How much of the next layer's hidden states codes carried through a map explain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.activations.capture import hidden_states
from harness.activations.site import Site
from harness.flow.activity import Batch, Texts, batches, mean_active, texts_of
from harness.flow.folding import decoder_rows, thresholds
from harness.flow.maps import FlowMaps, LatentMap
from harness.lab import Lab
from harness.metrics.base import Array
from harness.metrics.flow.transition import FlowTransition, Scale
from harness.metrics.study import Findings
from harness.sae.base import SparseAutoencoder
from harness.section import Json

Scales = dict[Scale, tuple[Tensor, Tensor]]


def run(study: FlowTransition, lab: Lab) -> Findings:
    """See harness/metrics/flow/transition.py."""
    maps: FlowMaps = lab.subject()
    statistics: dict[str, dict[str, Array]] = {}
    details: dict[str, Json] = {}
    pairs = list(zip(maps.residual, maps.residual[1:], strict=False))
    scales = {pair: _scales(study, lab, maps, *pair) for pair in pairs}
    for domain in study.domains(lab.experiment):
        layers = {pair: transition(lab, domain, maps.maps[pair], *pair, scales[pair]) for pair in pairs}
        weighed = [{name: sums / layer["variance"].sum() for name, sums in layer.items()} for layer in layers.values()]
        names = weighed[0]
        total = {f"flow_transition.{name}": torch.stack([layer[name] for layer in weighed]).sum(0) for name in names}
        statistics[domain] = {name: sums.numpy() for name, sums in total.items()}
        details[domain] = [{"from": str(a), "to": str(b), **_explained(layer)} for (a, b), layer in layers.items()]
    return Findings(statistics, details={"layers": details})


@torch.no_grad()
def transition(
    lab: Lab, domain: str, carrying: LatentMap, before: Site, after: Site, scales: Scales
) -> dict[str, Tensor]:
    """[documents] float64 sums: squared errors by kind of prediction, and `variance` around the domain's mean."""
    tokens = lab.tokens(domain)
    source, target = lab.saes()[before], lab.saes()[after]
    carrying = _on(carrying, lab.device)
    sums = _Sums(len(tokens.ids))
    for batch in batches(lab, Texts.of(tokens)):
        states = hidden_states(lab.model().model, (before, after), batch.ids, batch.real.long())
        given, wanted = (states[site][batch.ordinary].float() for site in (before, after))
        codes = source.encode(given)
        sums.add(batch, "own", wanted - target(wanted))
        sums.add(batch, "copied", wanted - source.decode(codes))
        for name, scale in scales.items():
            sums.add(batch, f"carried_{name}", wanted - target.decode(carrying.carry(codes, scale)))
        sums.note_states(batch, wanted)
    return {**sums.errors, "variance": sums.variance()}


class _Sums:
    """Per-document sums, filled batch by batch in the order of the documents."""

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
        """What `variance` needs."""
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
    rows = batch.ordinary.nonzero()[:, 0]
    sums: Tensor = values.new_zeros(len(batch.ids)).index_add_(0, rows, values)
    return sums.cpu()


def _scales(study: FlowTransition, lab: Lab, maps: FlowMaps, before: Site, after: Site) -> Scales:
    """What activations are divided by at one site and multiplied by at the next, per way of scaling."""
    saes = lab.saes()

    def means() -> tuple[Tensor, Tensor]:
        found = mean_active(lab, texts_of(maps.options, lab), (before, after))
        return found[before], found[after]

    ways: dict[Scale, Callable[[], tuple[Tensor, Tensor]]] = {
        "norm": lambda: (_inverse_norms(saes[before], before), _inverse_norms(saes[after], after)),
        "threshold": lambda: (thresholds(saes[before], before), thresholds(saes[after], after)),
        "activation": means,
    }
    made = {scale: ways[scale]() for scale in dict.fromkeys(study.scales)}
    return {scale: (one.to(lab.device), other.to(lab.device)) for scale, (one, other) in made.items()}


def _inverse_norms(sae: SparseAutoencoder, site: Site) -> Tensor:
    norms: Tensor = decoder_rows(sae, site).float().norm(dim=1)
    return norms.clamp_min(1e-12).reciprocal()


def _explained(layer: dict[str, Tensor]) -> dict[str, float]:
    total = layer["variance"].sum()
    return {name: float(1 - sums.sum() / total) for name, sums in layer.items() if name != "variance"}


def _on(found: LatentMap, device: torch.device) -> LatentMap:
    return LatentMap(found.indices.to(device), found.scores.to(device), found.cosines.to(device), found.width)
