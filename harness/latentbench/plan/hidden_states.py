"""Which hidden states a run would store, how much room they take, and what computing them again would cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from latentbench.activations.batching import batch_limit, batch_sizes
from latentbench.activations.state_shards import Shards, StatesOrigin
from latentbench.core.hashing import digest
from latentbench.core.paths import Roots
from latentbench.core.protocols import ModelFacts
from latentbench.core.sites import Site, block_number, resumed_from
from latentbench.core.stage import Stage
from latentbench.core.text import byte_size, plural
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.plan.stages import DomainStages, SaeStages
from latentbench.spec.cells import Cell
from latentbench.store.state_cache import STATES_QUOTA, states_limit
from latentbench.store.store import Store

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class WantedStates(ABC):
    """Hidden states of some tokens, and what reads them."""

    cell: Cell
    """One of those that read them."""
    model: object
    """Identity of the language model."""
    tokens: str
    """Key of the tokens."""
    sites: set[Site] = field(default_factory=set)
    saes: set[str] = field(default_factory=set)
    """Keys of the SAEs that read them."""

    @abstractmethod
    def shards(self, facts: ModelFacts, store: Store) -> Shards:
        """Their shards."""

    @property
    @abstractmethod
    def what(self) -> str:
        """Which tokens they are of."""

    @property
    @abstractmethod
    def readers(self) -> str:
        """What would otherwise have the model run."""

    def flops(self, facts: ModelFacts, tokens: int) -> float:
        """Of running the model over them once, up to the deepest site: 24 d² for each token and block, attention left out."""
        blocks = max(block_number(site.index, facts.layers) or 0 for site in self.sites) + 1
        return 24.0 * facts.d_model**2 * blocks * tokens

    @property
    def origin(self) -> StatesOrigin:
        """What their keys are made of."""
        return StatesOrigin(self.model, self.tokens)

    def token_bytes(self, facts: ModelFacts) -> int:
        """Of the hidden state of a token."""
        return facts.d_model * ITEM_BYTES[self.cell.experiment.model.dtype]


@dataclass
class WantedRows(WantedStates):
    """Those of training texts."""

    count: int = 0
    """How many tokens are trained on."""
    context: int = 1
    streams: set[str] = field(default_factory=set)

    def shards(self, facts: ModelFacts, store: Store) -> Shards:
        """Of documents that are padded there may be more, which only reading them tells."""
        rows = math.ceil(self.count / self.context)
        return Shards.of_rows(self.origin, sorted(self.sites, key=str), rows, self.context, self.token_bytes(facts))

    @property
    def what(self) -> str:
        """See `WantedStates`."""
        return f"{self.count:,} tokens"

    @property
    def readers(self) -> str:
        """See `WantedStates`."""
        return f"{plural(len(self.saes), 'SAE')} in {plural(len(self.streams), 'stream')}"


@dataclass
class WantedDocuments(WantedStates):
    """Those of an evaluation domain."""

    domain: str = ""
    spliced: bool = False
    """Whether reconstructions are spliced into the model, so that the last block's output is read too."""

    def shards(self, facts: ModelFacts, store: Store) -> Shards:
        """Of documents that nobody has tokenised yet, the most there can be."""
        data = self.cell.experiment.dataset.eval[self.domain]
        lengths = _lengths(store, self.tokens) or [data.context] * (data.documents or 0)
        limit = batch_limit(facts.vocabulary or 1)
        origin = StatesOrigin(self.model, self.tokens, limit)
        sizes = [count * longest for count, longest in batch_sizes(lengths, limit)]
        return Shards.of_batches(origin, self._read(facts), sizes, self.token_bytes(facts))

    def _read(self, facts: ModelFacts) -> list[Site]:
        """Where an SAE reads, and what splicing it in and the clean logits are resumed from."""
        resumed = {entrance for site in self.sites for entrance in resumed_from(site)} | {Site(index=facts.layers - 1)}
        return sorted(self.sites | (resumed if self.spliced else set()), key=str)

    def flops(self, facts: ModelFacts, tokens: int) -> float:
        """See `WantedStates`."""
        return 24.0 * facts.d_model**2 * facts.layers * tokens if self.spliced else super().flops(facts, tokens)

    @property
    def what(self) -> str:
        """See `WantedStates`."""
        return f"the documents of {self.domain}"

    @property
    def readers(self) -> str:
        """See `WantedStates`."""
        return f"measuring {plural(len(self.saes), 'SAE')}"


def states_preview(plan: Plan, store: Store, roots: Roots) -> Iterator[str]:
    """A line for each set of hidden states that a plan's trainings and measurements read; nothing where none is stored."""
    told = False
    for wanted in (*_wanted_rows(plan), *_wanted_documents(plan)):
        facts = wanted.cell.experiment.model.facts(roots)
        if facts is None:  # its configuration is not here yet
            continue
        told = True
        yield _line(wanted, facts, store)
    if told:
        yield f"stored hidden states may take {byte_size(states_limit(store))} ({STATES_QUOTA}); `resources: {{cache: never}}` stores none"


def _line(wanted: WantedStates, facts: ModelFacts, store: Store) -> str:
    shards = wanted.shards(facts, store)
    cost = _operations(wanted.flops(facts, sum(shards.tokens)))
    missing = shards.bytes_of(shards.missing(store))
    state = (
        f"{byte_size(missing)} to store, {cost} to compute" if missing else f"{byte_size(shards.bytes)} in the store"
    )
    sites = ", ".join(map(str, shards.sites[:4]))
    more = f" and {len(shards.sites) - 4} more" if len(shards.sites) > 4 else ""
    return f"hidden states of {wanted.what} at {sites}{more}: {state}; {wanted.readers} would each time take {cost} without them"


def _wanted_rows(plan: Plan) -> list[WantedRows]:
    found: dict[str, WantedRows] = {}
    for item in _storing(plan):
        for made in _trained(item):
            assert made.tokens is not None
            assert made.data is not None  # only what is trained on texts is wanted
            wanted = found.setdefault(
                digest("wanted", [item.stages.model, made.tokens.key]),
                WantedRows(
                    item.cell,
                    item.stages.model,
                    made.tokens.key,
                    count=made.data.tokens or 0,
                    context=made.data.context,
                ),
            )
            wanted.sites.add(made.site)
            wanted.saes.add(made.stage.key)
            training = item.cell.experiment.training
            wanted.streams.add(digest("stream", [item.cell.seed, training.batch, training.buffer]))
    return list(found.values())


def _wanted_documents(plan: Plan) -> list[WantedDocuments]:
    found: dict[str, WantedDocuments] = {}
    for item in _storing(plan):
        run = {step.stage.key for step in item.steps if step.run}
        for name, domain in item.stages.domains.items():
            for stage in (*_measured(domain, run), *_studied(item, name, run)):
                key = digest("wanted", [item.stages.model, domain.tokens.key])
                wanted = found.setdefault(
                    key, WantedDocuments(item.cell, item.stages.model, domain.tokens.key, domain=name)
                )
                wanted.sites.add(item.stages.saes[0].site)
                wanted.saes.add(item.stages.saes[0].stage.key)
                wanted.spliced |= bool(stage.payload.get("splice"))
    return list(found.values())


def _storing(plan: Plan) -> Iterator[PlannedCell]:
    return (item for item in plan.to_run if item.cell.experiment.resources.cache != "never")


def _measured(domain: DomainStages, run: set[str]) -> Iterator[Stage]:
    """What is to be measured in passes over a domain's documents."""
    if domain.baseline is not None:
        yield from (stage for stage in (domain.baseline, *domain.measurements.values()) if stage.key in run)
    if domain.every is not None:
        yield from _measured(domain.every, run)


def _studied(item: PlannedCell, domain: str, run: set[str]) -> Iterator[Stage]:
    """Studies that read the hidden states of a domain's documents."""
    experiment = item.cell.experiment
    for study in experiment.studies:
        stage = item.stages.studies[study.label]
        if study.reads_states and item.stages.saes and stage.key in run and domain in study.domains(experiment):
            yield stage


def _trained(item: PlannedCell) -> Iterator[SaeStages]:
    """SAEs of a cell that are to be trained on texts, those below others included."""
    run = {step.stage.key for step in item.steps if step.run}
    levels: dict[str, SaeStages] = {}
    for sae in item.stages.saes:
        levels |= {made.stage.key: made for _, made in sae.levels() if made.tokens and made.stage.key in run}
    yield from levels.values()


def _lengths(store: Store, key: str) -> list[int]:
    """Tokens of each document, where they are tokenised already."""
    from safetensors import (
        SafetensorError,
        safe_open,
    )  # with numpy, which a plan does without where nothing is tokenised

    for file in store.folder("tokens", key).glob("*.safetensors"):
        with suppress(SafetensorError, OSError), safe_open(file, "np") as tensors:
            found: list[int] = tensors.get_tensor("lengths").tolist()
            return found
    return []


def _operations(count: float) -> str:
    unit, size = ("PFLOP", 1e15) if count >= 1e15 else ("TFLOP", 1e12)
    return f"{count / size:,.1f} {unit}" if count >= size else "less than 1 TFLOP"
