"""Which hidden states a run would store, how much room they take, and what computing them again would cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from latentbench.activations.state_shards import Shards, StatesOrigin
from latentbench.core.hashing import digest
from latentbench.core.paths import Roots
from latentbench.core.protocols import ModelFacts
from latentbench.core.sites import Site, block_number
from latentbench.core.text import plural
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.plan.stages import SaeStages
from latentbench.spec.cells import Cell
from latentbench.store.state_cache import STATES_QUOTA, states_limit
from latentbench.store.store import Store

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class WantedStates:
    """Hidden states of one set of training tokens, and what reads them."""

    made: SaeStages
    cell: Cell
    sites: set[Site] = field(default_factory=set)
    saes: set[str] = field(default_factory=set)
    """Keys of the SAEs to train."""
    streams: set[str] = field(default_factory=set)
    """What each of them would otherwise have the model run for."""

    def shards(self, facts: ModelFacts) -> Shards:
        """Their shards. Of documents that are padded there may be more, which only reading them tells."""
        data, model = self.made.data, self.cell.experiment.model
        assert data is not None  # only what is trained on texts is wanted
        assert self.made.tokens is not None
        origin = StatesOrigin(self.made.stage.payload["model"], self.made.tokens.key)
        rows, token_bytes = math.ceil((data.tokens or 0) / data.context), facts.d_model * ITEM_BYTES[model.dtype]
        return Shards.of_rows(origin, sorted(self.sites, key=str), rows, data.context, token_bytes)

    def flops(self, facts: ModelFacts) -> float:
        """Of running the model over them once, up to the deepest site: 24 d² for each token and block, attention left out."""
        blocks = max(block_number(site.index, facts.layers) or 0 for site in self.sites) + 1
        return 24.0 * facts.d_model**2 * blocks * int((self.made.data and self.made.data.tokens) or 0)


def states_preview(plan: Plan, store: Store, roots: Roots) -> Iterator[str]:
    """A line for each set of hidden states that the trainings of a plan read; nothing where none is stored."""
    told = False
    for wanted in _wanted(plan):
        facts = wanted.cell.experiment.model.facts(roots)
        if facts is None:  # its configuration is not here yet
            continue
        told = True
        yield _line(wanted, facts, store)
    if told:
        yield f"stored hidden states may take {_size(states_limit(store))} ({STATES_QUOTA}); `resources: {{cache: never}}` stores none"


def _line(wanted: WantedStates, facts: ModelFacts, store: Store) -> str:
    shards, cost = wanted.shards(facts), _operations(wanted.flops(facts))
    missing = shards.bytes_of(shards.missing(store))
    state = f"{_size(missing)} to store, {cost} to compute" if missing else f"{_size(shards.bytes)} in the store"
    read = f"{plural(len(wanted.saes), 'SAE')} in {plural(len(wanted.streams), 'stream')}"
    tokens = (
        f"{(wanted.made.data and wanted.made.data.tokens) or 0:,} tokens at {', '.join(map(str, shards.sites[:4]))}"
    )
    more = f" and {len(shards.sites) - 4} more" if len(shards.sites) > 4 else ""
    return f"hidden states of {tokens}{more}: {state}; {read} would each time take {cost} without them"


def _wanted(plan: Plan) -> list[WantedStates]:
    found: dict[str, WantedStates] = {}
    for item in plan.to_run:
        if item.cell.experiment.resources.cache == "never":
            continue
        for made in _trained(item):
            assert made.tokens is not None
            key = digest("wanted", [made.stage.payload["model"], made.tokens.key])
            wanted = found.setdefault(key, WantedStates(made, item.cell))
            wanted.sites.add(made.site)
            wanted.saes.add(made.stage.key)
            training = item.cell.experiment.training
            wanted.streams.add(digest("stream", [item.cell.seed, training.batch, training.buffer]))
    return list(found.values())


def _trained(item: PlannedCell) -> Iterator[SaeStages]:
    """SAEs of a cell that are to be trained on texts, those below others included."""
    run = {step.stage.key for step in item.steps if step.run}
    levels: dict[str, SaeStages] = {}
    for sae in item.stages.saes:
        levels |= {made.stage.key: made for _, made in sae.levels() if made.tokens and made.stage.key in run}
    yield from levels.values()


def _operations(count: float) -> str:
    unit, size = ("PFLOP", 1e15) if count >= 1e15 else ("TFLOP", 1e12)
    return f"{count / size:,.1f} {unit}" if count >= size else "less than 1 TFLOP"


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
