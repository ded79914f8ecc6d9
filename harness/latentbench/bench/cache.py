"""Sweeps of SAEs over the same texts: with hidden states from the model, the first that stores them, and from the store.

Each SAE of a sweep is trained and measured alone, as other seeds, batch sizes and later specs are, so each pays the language
model. Time is taken apart into what hidden states cost and what is left: the SAE's own steps, and for measurements its codes
and the blocks behind its site. Whether weights and numbers are the same is compared to the bit. The store is a temporary one
beside the project's, on the same disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import TypeVar

import torch
from torch import Tensor

from latentbench.activations.row_states import LiveRowStates, RowStates, stored_row_states
from latentbench.activations.state_shards import StatesOrigin
from latentbench.activations.tokens import EvalTokens, TrainTokens
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.execute.cell_record import processor_name
from latentbench.execute.job_inputs import ModelCache, make_eval_tokens, make_train_tokens
from latentbench.plan.stages import SaeStages, splices, stages_of
from latentbench.reconstruction.document_states import states_to_store, stored_document_states
from latentbench.reconstruction.documents import DocumentBatch, DocumentStates, LiveDocumentStates
from latentbench.reconstruction.shared_pass import MeasurementRequest, PassResults, measure
from latentbench.reconstruction.statistics import Baseline
from latentbench.sae.activation_stream import ActivationStream
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE
from latentbench.sae.options import Variant
from latentbench.sae.trainer import NativeTrainer, train
from latentbench.spec.cells import Cell
from latentbench.store.state_cache import STATES
from latentbench.store.store import Store

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class CacheSizes:
    """How much is run."""

    saes: int
    tokens: int
    """Training tokens, rounded up to full rows."""
    documents: int
    cpu_time: bool = False
    """Whether seconds are those of the processor (all threads together) and not of the clock on the wall: then waiting for disks
    does not count, and neither does what others do on the machine."""


@dataclass(frozen=True)
class Taken:
    """Seconds that some work took."""

    states: float
    """Waiting for hidden states, and for clean logits where reconstructions are spliced in."""
    rest: float

    @property
    def total(self) -> float:
        """Both."""
        return self.states + self.rest

    def shared(self, saes: int) -> float:
        """What it would take if all SAEs asked for hidden states together, as those of one stream do."""
        return self.states / saes + self.rest


@dataclass(frozen=True)
class Sweep:
    """Training and measuring every SAE of a sweep."""

    training: Taken
    baseline: Taken
    """What is measured of the model alone; a later sweep finds it in the store."""
    measuring: Taken

    @property
    def total(self) -> float:
        """All of a first sweep."""
        return self.later + self.baseline.total

    @property
    def later(self) -> float:
        """All of a sweep that finds the baseline."""
        return self.training.total + self.measuring.total


@dataclass(frozen=True)
class CacheTiming:
    """What each sweep took, on which processor."""

    processor: str
    device: str
    threads: int
    cpu_time: bool
    """Whether seconds are the processor's."""
    model: str
    dtype: str
    site: str
    saes: int
    tokens: int
    """Training tokens that each of them read."""
    documents: int
    document_tokens: int
    splices: bool
    """Whether cross-entropy was measured too."""
    training_bytes: int
    """Of stored hidden states."""
    document_bytes: int
    live: Sweep
    storing_rows: float
    """Seconds until the hidden states of training texts were in the store, computing them included."""
    storing_documents: float
    stored: Sweep
    equal: bool
    """Whether weights and numbers were the same with and without the store, bit for bit."""

    @property
    def first_storing(self) -> float:
        """Seconds of a first sweep that stores hidden states and reads them."""
        return self.storing_rows + self.storing_documents + self.stored.total

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as fast."""
        live, stored, n = self.live, self.stored, self.saes
        return {
            "second sweep over first": live.total / stored.later,
            "second sweep over first that stored": self.first_storing / stored.later,
            "first that stored over first": live.total / self.first_storing,
            "training": live.training.total / stored.training.total,
            "training, states shared": live.training.shared(n) / stored.training.shared(n),
            "measuring": live.measuring.total / stored.measuring.total,
            "measuring, states shared": live.measuring.shared(n) / stored.measuring.shared(n),
            "hidden states of training": live.training.states / stored.training.states,
            "hidden states of measuring": live.measuring.states / stored.measuring.states,
        }

    def lines(self) -> Iterator[tuple[str, float, float]]:
        """Names and seconds with computed and with stored hidden states."""
        yield "storing", 0.0, self.storing_rows + self.storing_documents
        parts = (("training", "training"), ("baseline", "model alone"), ("measuring", "measuring"))
        for part, name in parts:
            live, stored = getattr(self.live, part), getattr(self.stored, part)
            yield f"{name}: hidden states", live.states, stored.states
            yield f"{name}: the rest", live.rest, stored.rest


def run(cell: Cell, roots: Roots, device: str, store: Path, sizes: CacheSizes) -> CacheTiming:
    """Times sweeps of a cell's first SAE, with other seeds. Raises InvalidInput for a cell that trains none on texts."""
    made = next((made for sae in stages_of(cell, roots).saes for _, made in sae.levels() if made.tokens), None)
    if made is None or made.bases or not isinstance(made.section, Variant) or not cell.experiment.dataset.eval:
        raise InvalidInput(f"{cell.title} trains no SAE on texts and measures it on others; name a spec that does")
    store.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=store, prefix="bench-") as folder:
        return _Bench(cell, made, ModelCache(roots, device), Store(Path(folder)), sizes).timed()


class _Bench:
    """The texts of a cell, and what is done with them."""

    def __init__(self, cell: Cell, made: SaeStages, models: ModelCache, store: Store, sizes: CacheSizes) -> None:
        assert made.data is not None
        assert made.tokens is not None
        experiment, stages = cell.experiment, stages_of(cell, models.roots)
        domain, data = next(iter(experiment.dataset.eval.items()))
        self.cell, self.made, self.store, self.sizes = cell, made, store, sizes
        self.model = models.model(experiment.model, max(made.data.context, data.context))
        rows = make_train_tokens(store, made, models, experiment.model)
        self.rows = _first_rows(rows, -(-sizes.tokens // made.data.context))
        documents = make_eval_tokens(store, stages.domains[domain].tokens, data, models, experiment.model)
        self.documents = _first_documents(documents, sizes.documents)
        self.splice = splices(experiment, None)
        self.clock: Clock = process_time if sizes.cpu_time else perf_counter

    def timed(self) -> CacheTiming:
        few = _first_rows(self.rows, 8)  # kernels are made in a first pass and a first step
        self._trained(LiveRowStates(self.model, few, [self.site]), 0, few)
        computing = LiveRowStates(self.model, self.rows, [self.site])
        live, found = self._sweep(computing, LiveDocumentStates(self.model.model))
        rows, storing_rows = _seconds(self._stored_rows, self.clock)
        row_bytes = self._bytes()
        documents, storing_documents = _seconds(self._stored_documents, self.clock)
        stored, again = self._sweep(rows, documents)
        experiment = self.cell.experiment
        return CacheTiming(
            processor=processor_name(),
            device=str(self.model.device),
            threads=torch.get_num_threads(),
            cpu_time=self.sizes.cpu_time,
            model=self._model_name,
            dtype=experiment.model.dtype,
            site=str(self.site),
            saes=self.sizes.saes,
            tokens=self.rows.tokens,
            documents=len(self.documents.ids),
            document_tokens=int(self.documents.lengths.sum()),
            splices=self.splice,
            training_bytes=row_bytes,
            document_bytes=self._bytes() - row_bytes,
            live=live,
            storing_rows=storing_rows,
            storing_documents=storing_documents,
            stored=stored,
            equal=found == again,
        )

    @property
    def site(self) -> Site:
        """Where the SAEs read."""
        return self.made.site

    @property
    def _model_name(self) -> str:
        parameters = sum(part.numel() for part in self.model.model.parameters())
        return f"{type(self.model.model).__name__}, {parameters / 1e6:,.1f} million parameters"

    def _bytes(self) -> int:
        return sum(artifact.bytes for artifact in self.store.artifacts(STATES))

    def _stored_rows(self) -> RowStates:
        origin = StatesOrigin(self.made.stage.payload["model"], "rows")
        found = stored_row_states(self.store, origin, self.model, self.rows, [self.site], "always")
        assert found is not None  # `always` stores or raises
        return found

    def _stored_documents(self) -> DocumentStates:
        origin = StatesOrigin(self.made.stage.payload["model"], "documents")
        sites = states_to_store(self.model.model, [self.site], [self.site] if self.splice else [])
        if sites is None:
            raise InvalidInput(
                f"{self.cell.title}: the clean logits of this model do not follow from its last block alone"
            )
        found = stored_document_states(self.store, origin, self.model, self.documents, sites, "always")
        assert found is not None  # `always` stores or raises
        return found

    def _sweep(self, rows: RowStates, documents: DocumentStates) -> tuple[Sweep, str]:
        """What it took, and a digest of weights and numbers."""
        found = sha256()
        waiting = _Waiting(rows, self.clock)
        saes = [self._trained(waiting, seed, self.rows) for seed in range(self.sizes.saes)]
        training = waiting.taken()
        reading = _Documents(documents, self.clock)
        known = self._measured(reading, []).baselines
        baseline = reading.taken()
        measured = [self._measured(reading, [sae], known) for sae in saes]
        measuring = reading.taken()
        for sae, results in zip(saes, measured, strict=True):
            numbers = map(torch.from_numpy, results.measurements[0].statistics.values())
            for tensor in (*sae.state_dict().values(), *numbers):
                found.update(tensor.cpu().numpy().tobytes())
        return Sweep(training, baseline, measuring), found.hexdigest()

    def _trained(self, states: RowStates, seed: int, rows: TrainTokens) -> SparseAutoencoder:
        options, rule, section = self.cell.experiment.training, self.cell.experiment.token_rule, self.made.section
        assert isinstance(section, Variant)
        source = ActivationStream(
            self.model, rows, [self.site], rows.tokens, options, self.cell.seed + seed, rule=rule, states=states
        )
        norm, mean = source.first_norms[self.site], source.means[self.site]
        sae = section.build(len(mean), torch.Generator().manual_seed(seed), ()).to(self.model.device)
        if not isinstance(sae, TrainableSAE):
            raise InvalidInput(f"{self.cell.title}: {section.variant} is not trained step by step; name another spec")
        trainer = NativeTrainer(sae, self.site, options, steps=source.steps, first_norm=norm, mean=mean)
        outcome = train([trainer], source)[trainer]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _measured(
        self, states: DocumentStates, saes: list[SparseAutoencoder], known: Mapping[Site, Baseline] | None = None
    ) -> PassResults:
        results = measure(
            self.model,
            self.documents,
            [MeasurementRequest("sae", sae, self.site, splice=self.splice) for sae in saes],
            baselines=known,
            sites=[self.site],
            splice_sites=[self.site] if self.splice else [],
            rule=self.cell.experiment.token_rule,
            states=states,
        )
        for error in results.failures.values():
            raise error
        return results


class _Clock:
    """Tells waiting for hidden states from all other time."""

    def __init__(self, clock: Clock) -> None:
        self._waited, self._clock = 0.0, clock
        self._began = clock()

    def taken(self) -> Taken:
        """The time since this was last asked."""
        waited, began, now = self._waited, self._began, self._clock()
        self._waited, self._began = 0.0, now
        return Taken(waited, now - began - waited)

    def timed(self, work: Callable[[], T]) -> T:
        """What some waiting gives."""
        began = self._clock()
        try:
            return work()
        finally:
            self._waited += self._clock() - began


class _Waiting(_Clock):
    """Rows, timed."""

    def __init__(self, states: RowStates, clock: Clock) -> None:
        super().__init__(clock)
        self._states = states

    def read(self, rows: Tensor, counted: Tensor) -> dict[Site, Tensor]:
        """See `RowStates`."""
        return self.timed(lambda: self._states.read(rows, counted))


class _Documents(_Clock):
    """Documents, timed."""

    def __init__(self, states: DocumentStates, clock: Clock) -> None:
        super().__init__(clock)
        self._states = states

    def read(self, batch: DocumentBatch, sites: Collection[Site]) -> dict[Site, Tensor]:
        """See `DocumentStates`."""
        return self.timed(lambda: self._states.read(batch, sites))

    def read_with_logits(self, batch: DocumentBatch, sites: Collection[Site]) -> tuple[dict[Site, Tensor], Tensor]:
        """See `DocumentStates`."""
        return self.timed(lambda: self._states.read_with_logits(batch, sites))


def _first_rows(tokens: TrainTokens, rows: int) -> TrainTokens:
    lengths = None if tokens.lengths is None else tokens.lengths[:rows]
    return TrainTokens(tokens.ids[:rows], (), lengths)


def _first_documents(tokens: EvalTokens, documents: int) -> EvalTokens:
    return EvalTokens(tokens.ids[:documents], tokens.lengths[:documents], tokens.digests[:documents], 0)


def _seconds(work: Callable[[], T], clock: Clock) -> tuple[T, float]:
    start = clock()
    return work(), clock() - start
