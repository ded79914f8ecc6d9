"""What `flow_deactivation` does: removes predecessors at single tokens and looks at what they led to.

Documents are read in batches. The untouched pass of a batch gives its cases, an active latent at a sampled token each; then
every case runs again from the block before the predecessors on, with their contribution taken away at its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.massive import OrdinaryTokens
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.activity import Batch, TokenRows, batches, held, ordinary_tokens
from latentbench.flow.effects import RerunCases, RerunOutcome, RerunRows, entry_before, losses_from, rerun
from latentbench.flow.maps import FlowMaps
from latentbench.flow.matching import decoder_rows
from latentbench.flow.metrics import FlowDeactivation, Removed
from latentbench.flow.topology import Part
from latentbench.interventions.intervention import Receipt
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.study.context import StageContext
from latentbench.study.study import Findings

REMOVED_PARTS: dict[Removed, tuple[Part, ...]] = {
    "all": ("residual", "mlp", "attention"),
    "residual": ("residual",),
    "modules": ("mlp", "attention"),
}


@torch.no_grad()
def measure_deactivation(study: FlowDeactivation, context: StageContext) -> Findings:
    """The findings of `flow_deactivation` (metrics.py): sums per document over all layers."""
    maps: FlowMaps = context.subject()
    targets = study.sites(maps.residual)
    if not targets:
        raise InvalidInput(f"flow_deactivation: there is nothing to look at behind the blocks {study.layers}")
    statistics: dict[str, dict[str, Array]] = {}
    details: dict[str, Json] = {}
    domains = study.domains(context.experiment)
    context.progress(0, len(domains) * len(targets), "layers")
    for number, domain in enumerate(domains):
        layers = {}
        for done, target in enumerate(targets):
            layers[target] = deactivated(study, context, maps, domain, target)
            context.progress(number * len(targets) + done + 1, len(domains) * len(targets), "layers")
        statistics[domain] = _summed([layer.sums for layer in layers.values()])
        details[domain] = [
            {
                "site": str(site),
                "sums": {n: float(s.sum()) for n, s in layer.sums.items()},
                "receipt": vars(layer.receipt),
            }
            for site, layer in layers.items()
        ]
    units = {
        domain: found.of(slice(_read(study, len(found.numbers)))) for domain, found in context.units(domains).items()
    }
    return Findings(statistics, details={"layers": details}, units=units)


@dataclass
class LayerSums:
    """Per-document sums of one target site."""

    documents: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Name to [documents] float64."""
    receipt: Receipt = field(default_factory=Receipt)
    """The receipts of all interventions added up."""

    def add(self, name: str, documents: Tensor, values: Tensor) -> None:
        """Adds one value per case to the sums of the documents they belong to."""
        sums = self.sums.setdefault(name, torch.zeros(self.documents, dtype=torch.float64))
        sums.index_add_(0, documents.cpu(), values.double().cpu())


@dataclass(frozen=True)
class _Found:
    """The cases of one batch."""

    cases: RerunCases
    before: Tensor
    """[C] activations of their latents."""
    tokens: Tensor
    """[C] number of the sampled token each case is at."""
    active: dict[Part, Tensor]
    """[sampled tokens, width] dense activations of the predecessors' sites at the sampled tokens."""
    losses: Tensor | None
    """[C] float64: untouched losses from the token on."""


def deactivated(study: FlowDeactivation, context: StageContext, maps: FlowMaps, domain: str, target: Site) -> LayerSums:
    """Per-document sums for the latents of one site."""
    tokens = context.tokens(domain)
    count = _read(study, len(tokens.ids))
    generator = torch.Generator().manual_seed(context.seed("deactivation", domain, str(target)))
    layer, saes = LayerSums(count), held(context, (target, *(link.source for link in maps.into(target))))
    texts = TokenRows(tokens.ids[:count], tokens.lengths[:count])
    counted = ordinary_tokens(context, texts, saes)
    for batch in batches(context, texts):
        _Batch(study, context, saes, maps, target, batch, layer, generator, counted).run()
    return layer


def _read(study: FlowDeactivation, documents: int) -> int:
    """How many documents of a domain are looked at, from the first on."""
    return documents if study.documents == "all" else min(study.documents, documents)


class _Batch:
    """All cases of some documents at one target."""

    def __init__(
        self,
        study: FlowDeactivation,
        context: StageContext,
        saes: Mapping[Site, SparseAutoencoder],
        maps: FlowMaps,
        target: Site,
        batch: Batch,
        layer: LayerSums,
        generator: torch.Generator,
        counted: OrdinaryTokens,
    ) -> None:
        self.study, self.context, self.batch, self.layer, self.target = study, context, batch, layer, target
        self.saes, self.generator, self.counted = saes, generator, counted
        self.sources: dict[Part, Site] = {link.part: link.source for link in maps.into(target)}
        self.indices = {part: maps.maps[target, site].indices.to(context.device) for part, site in self.sources.items()}
        self.rows_of = {part: decoder_rows(saes[site], site) for part, site in self.sources.items()}

    def run(self) -> None:
        """Finds the cases, changes the model, and adds what comes of it."""
        rows, found = self._prepare()
        owners = found.cases.rows + self.batch.rows.start
        self.layer.add("flow_deactivation.cases", owners, torch.ones(len(owners)))
        acting = {part: self._acting(found, part) for part in self.sources}
        after: dict[Removed, Tensor] = {}
        for removed in dict.fromkeys(self.study.parts):
            chosen = [part for part in REMOVED_PARTS[removed] if part in self.sources]
            on = torch.stack([(acting[part] != 0).any(1) for part in chosen]).any(0) if chosen else None
            after[removed] = self._try(rows, found, removed, {part: acting[part] for part in chosen}, on, owners)
        if self.study.exhaustive:
            self._exhaust(rows, found, owners, after)

    def _prepare(self) -> tuple[RerunRows, _Found]:
        batch, lm = self.batch, self.context.model()
        entry = entry_before(self.sources["residual"])
        sites = {self.target, *self.sources.values(), *([entry] if entry else [])}
        mask, logits = batch.real.long(), None
        if self.study.loss:
            states, logits = hidden_states_and_logits(lm.model, sites, batch.ids, mask)
        else:
            states = hidden_states(lm.model, sites, batch.ids, mask)
        rows = RerunRows(batch.ids, batch.real, entry, states[entry] if entry else None)
        return rows, self._found(states, logits)

    def _found(self, states: dict[Site, Tensor], logits: Tensor | None) -> _Found:
        kept = self.batch.ordinary
        for (
            site
        ) in self.saes:  # a case reads the target and every part before it, so its token must count at all of them
            kept = kept & self.counted.short(site, states[site])
        where = sampled(kept, self.study.tokens, self.generator)
        saes = self.saes
        codes = saes[self.target].encode(states[self.target][where].float()).truncated(self.study.latents)
        tokens, slots = (codes.values > 0).nonzero(as_tuple=True)
        cases = RerunCases(where[0][tokens], where[1][tokens], codes.indices[tokens, slots])
        active = {
            part: saes[site].encode(states[site][where].float()).dense(saes[site].width)
            for part, site in self.sources.items()
        }
        losses = None
        if logits is not None:
            per_token = losses_from(logits, self.batch.ids, self.batch.real, where[1], where[0])
            losses = per_token[tokens]
        return _Found(cases, codes.values[tokens, slots], tokens, active, losses)

    def _acting(self, found: _Found, part: Part) -> Tensor:
        """[C, k] activations of each case's matches; 0 for none."""
        matches = self.indices[part][found.cases.latents]
        return found.active[part][found.tokens[:, None], matches.clamp_min(0)] * (matches >= 0)

    def _try(
        self,
        rows: RerunRows,
        found: _Found,
        removed: Removed,
        acting: dict[Part, Tensor],
        on: Tensor | None,
        owners: Tensor,
    ) -> Tensor:
        """[C] what remains when the active matches of some parts are removed together; NaN in cases that have none."""
        after = torch.full_like(found.before, torch.nan)
        name = f"flow_deactivation.{removed}"
        chosen = owners.new_empty(0) if on is None else on.nonzero()[:, 0]
        for part in ("tried", "deactivated", "change"):  # so that they exist where no case is tried, and are 0
            self.layer.add(f"{name}.{part}", owners[:0], owners[:0])
        if not len(chosen):
            return after
        cases = found.cases.part(chosen)
        deltas = {self.sources[part]: self._delta(part, cases, act[chosen]) for part, act in acting.items()}
        outcome = self._rerun(rows, cases, deltas, loss=self.study.loss)
        self._note(name, owners[chosen], found.before[chosen], outcome.activations)
        if outcome.losses is not None and found.losses is not None:
            self.layer.add(f"{name}.loss_after", owners[chosen], outcome.losses)
            self.layer.add(f"{name}.loss_before", owners[chosen], found.losses[chosen])
        after[chosen] = outcome.activations.to(after)
        return after

    def _delta(self, part: Part, cases: RerunCases, acting: Tensor) -> Tensor:
        """[C, d]: (r − 1) Σ a · v over the matches of each case."""
        matches = self.indices[part][cases.latents].clamp_min(0)
        weights = ((self.study.r - 1) * acting).to(self.rows_of[part].dtype)
        return torch.nn.functional.embedding_bag(matches, self.rows_of[part], per_sample_weights=weights, mode="sum")

    def _rerun(
        self, rows: RerunRows, cases: RerunCases, deltas: dict[Site, Tensor], *, loss: bool = False
    ) -> RerunOutcome:
        outcome = rerun(self.context.model(), self.saes[self.target], self.target, rows, cases, deltas, loss=loss)
        self.layer.receipt = self.layer.receipt + outcome.receipt
        return outcome

    def _note(self, name: str, owners: Tensor, before: Tensor, after: Tensor) -> None:
        self.layer.add(f"{name}.tried", owners, torch.ones(len(owners)))
        self.layer.add(f"{name}.deactivated", owners, (after == 0).double())
        self.layer.add(f"{name}.change", owners, 1 - after.double() / before.double())

    def _exhaust(self, rows: RerunRows, found: _Found, owners: Tensor, after: Mapping[Removed, Tensor]) -> None:
        """In some tried cases of each document: the best single removal among all that is active, beside the matches'."""
        able = torch.stack([tried.isfinite() for tried in after.values()]).any(0).nonzero()[:, 0]
        chosen = able[_some(found.cases.rows[able], self.study.exhaustive, self.generator)]
        lowest = {part: self._lowest(rows, found, chosen, part) for part in self.sources}
        for removed, matched in after.items():
            name, kept = f"flow_deactivation.{{}}.{removed}", matched[chosen].isfinite()
            # Without SAEs at these parts nothing was tried, so that `kept` leaves out what stands in for the best here.
            best = torch.stack(
                [lowest[part] for part in REMOVED_PARTS[removed] if part in lowest] or [matched[chosen]]
            ).amin(0)
            for kind, values in (("exhaustive", best), ("matched", matched[chosen])):
                self._note(name.format(kind), owners[chosen][kept], found.before[chosen][kept], values[kept])

    def _lowest(self, rows: RerunRows, found: _Found, chosen: Tensor, part: Part) -> Tensor:
        """[chosen] the least that removing one active latent of a part leaves of each case; infinity where none is."""
        least = torch.full((len(chosen),), torch.inf, device=chosen.device)
        number, latent = found.active[part][found.tokens[chosen]].nonzero(as_tuple=True)
        if len(number):
            activations = found.active[part][found.tokens[chosen][number], latent]
            delta = ((self.study.r - 1) * activations)[:, None] * self.rows_of[part][latent]
            outcome = self._rerun(rows, found.cases.part(chosen[number]), {self.sources[part]: delta})
            # The same case once per active latent: the least of its results.
            least.scatter_reduce_(0, number, outcome.activations, "amin")
        return least


def sampled(ordinary: Tensor, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows, columns) of up to `tokens` random ordinary tokens of every row, row by row."""
    drawn = torch.rand(ordinary.shape, generator=generator).to(ordinary.device).masked_fill(~ordinary, -1)
    # The largest of uniform numbers are a uniform draw without replacement.
    values, columns = drawn.topk(min(tokens, ordinary.shape[1]), dim=1)
    rows, slots = (values >= 0).nonzero(as_tuple=True)
    return rows, columns[rows, slots]


def _some(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of up to `count` random cases of every row: shuffled, grouped by row, and the first of each group kept."""
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    order = order[torch.argsort(rows[order], stable=True)]
    sizes = torch.bincount(rows)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(rows), device=rows.device) - starts[rows[order]]
    return order[rank < count]


def _summed(layers: list[dict[str, Tensor]]) -> dict[str, Array]:
    names = {name: None for layer in layers for name in layer}
    return {name: torch.stack([layer[name] for layer in layers if name in layer]).sum(0).numpy() for name in names}
