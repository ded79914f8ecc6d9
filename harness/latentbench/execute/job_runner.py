"""Computing the cells of a job: training, then measuring, then studies, then records. A cell that fails costs only
itself.

What cells have in common is computed once: an error in it is the failure of all that share it.
"""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from latentbench.activations.tokens import EvalTokens, TrainTokens, overlap
from latentbench.core.border import contained
from latentbench.core.errors import CellFailed, LatentbenchError, NotAvailable, StoreError
from latentbench.core.text import plural
from latentbench.core.token_rule import MUCH, share_left_out
from latentbench.distributed.progress_meter import ProgressMeter
from latentbench.distributed.worker_process import Event, EventHandler
from latentbench.execute.cell_record import (
    artifacts_of,
    beyond_training,
    build_record,
    numbers_of,
    peak_memory_bytes,
    sidecar_of,
    training_warnings,
)
from latentbench.execute.job import Job, JobCell
from latentbench.execute.job_inputs import ModelCache, make_train_tokens
from latentbench.execute.measurement_stage import DomainMeasurement, MeasuredCell, MeasurementRunner
from latentbench.execute.sae_loading import SaeCache
from latentbench.execute.study_stage import StudiedCell, StudyRunner
from latentbench.execute.training_launcher import train_on_devices
from latentbench.execute.training_stage import TrainingRequest, TrainingRunner
from latentbench.metrics.value import MetricValue
from latentbench.plan.stages import CellStages, SaeStages, cell_key, stages_of
from latentbench.reconstruction.statistics import Baseline
from latentbench.records.record import Failure, RunCost
from latentbench.records.results import referred_keys, write_record
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import Variant
from latentbench.spec.cells import Cell
from latentbench.store.cleaning import keep_within, quota_of_environment
from latentbench.store.store import Store
from latentbench.study.study import Findings, Study


@dataclass(eq=False)
class _State:
    """How far a cell of the job has come."""

    item: JobCell
    stages: CellStages | None = None
    error: Failure | None = None
    measured: dict[str, DomainMeasurement] = field(default_factory=dict)
    """By domain."""
    findings: dict[str, Findings] = field(default_factory=dict)
    """By the study's name."""
    numbers: list[MetricValue] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """By part of the work; what several cells share is counted in full for each."""


def run_job(job: Job, report: EventHandler) -> None:
    """Computes every cell of the job and writes its record, also when it failed."""
    threads = torch.get_num_threads()  # the inline executor runs in somebody's process
    torch.set_num_threads(job.threads)
    try:
        _Run(job, report).run()
    finally:
        torch.set_num_threads(threads)


class _Run:
    def __init__(self, job: Job, report: EventHandler) -> None:
        self.job, self.report = job, report
        self.store = Store(job.store)
        self.models = ModelCache(job.roots, job.device)
        self.training = TrainingRunner(
            self.store, self.models, on_devices=partial(train_on_devices, job, report=report)
        )
        self.measuring = MeasurementRunner(self.store, self.models)
        self.studying = StudyRunner(self.store, self.models)
        self.states = {item.cell: _State(item) for item in job.cells}
        self.saes = SaeCache(self._load)
        self.train_tokens: dict[str, TrainTokens] = {}
        """By stage key."""

    def run(self) -> None:
        for state in self.states.values():
            self._guard([state], "plan", partial(self._find_stages, state))
        needed = {stage.key for state in self._alive() if state.stages for stage in state.stages.all()}
        quota = quota_of_environment()  # a wrong one is refused now and not after hours of work
        with self.store.using(needed):
            self._compute()
        keep_within(self.store, quota, partial(referred_keys, self.job.results))

    def _compute(self) -> None:
        # Records come last and for every cell: until then a cell may still fail.
        self._train()
        for domain in dict.fromkeys(name for s in self._alive() for name in s.item.cell.experiment.dataset.eval):
            self._measure(domain)
        for state in self._alive():
            self._study(state)
        for state in self.states.values():
            self._write(state)

    def _alive(self) -> list[_State]:
        return [state for state in self.states.values() if state.error is None]

    def _guard(self, states: Iterable[_State], stage: str, work: Callable[[], None]) -> None:
        """Runs `work`; what it raises becomes the failure of `states`."""
        start = time.perf_counter()
        try:
            work()
        except BaseException as error:  # the border at which one cell's failure stops
            kept = contained(error)
            for state in states:
                state.error = _failure(stage, kept)
        for state in states:
            state.seconds[stage] = state.seconds.get(stage, 0.0) + time.perf_counter() - start

    def _find_stages(self, state: _State) -> None:
        """The cell's stages, which must be those that it was planned with: its record is named by their keys."""
        state.stages = stages_of(state.item.cell, self.job.roots)
        if cell_key(state.item.cell, state.stages) != state.item.key:
            raise CellFailed("files changed between planning and running; run it again")

    def _train(self) -> None:
        """Trains the SAEs that are missing, those that others stand on first."""
        # Level 0 needs no other SAE. Those of one level that read the same stream are trained together.
        levels: dict[int, list[tuple[TrainingRequest, _State]]] = defaultdict(list)
        for state in self._alive():
            for level, made in _levels(state.stages):
                if made.stage.stored and not self.store.get(made.stage.kind, made.stage.key):
                    levels[level].append((TrainingRequest(state.item.cell, made), state))
        for _, pairs in sorted(levels.items()):
            alive = [(wanted, state) for wanted, state in pairs if state.error is None]
            for group in self.training.together([wanted for wanted, _ in alive]):
                keys = {wanted.key for wanted in group}
                users = [(wanted.key, state) for wanted, state in alive if wanted.key in keys]
                waiting = dict.fromkeys(state for _, state in users)  # a cell may want several of these SAEs
                self._guard(waiting, "train", partial(self._train_group, group, users))

    def _train_group(self, group: list[TrainingRequest], users: list[tuple[str, _State]]) -> None:
        text = f"training {plural(len(group), 'SAE')} of {_together([wanted.cell for wanted in group])}"
        with self._meter(text, dict.fromkeys(state for _, state in users)) as progress:
            failures = self.training.run(group, progress)
        for key, state in users:
            if key in failures:
                state.error = _failure("train", failures[key])

    def _measure(self, domain: str) -> None:
        """Measures the SAEs of all cells whose metrics share the pass over the domain's documents."""
        for every in (False, True):  # what counts every token is kept beside what the row itself counts
            subjects = [
                MeasuredCell(state.item.cell, state.stages, partial(self.saes.get, state.stages.saes[0]), every)
                for state in self._alive()
                if state.stages and (found := state.stages.domains.get(domain))
                if (found.every if every else found.baseline)
            ]
            for group in self.measuring.together(subjects, domain):
                states = [self.states[subject.cell] for subject in group]
                self._guard(states, "measure", partial(self._measure_group, group, domain, every))

    def _measure_group(self, group: list[MeasuredCell], domain: str, every: bool) -> None:
        cells = _together([subject.cell for subject in group])
        text = f"measuring {plural(len(group), 'SAE')} of {cells} on {domain}" + (", every token" if every else "")
        with self._meter(text, [self.states[subject.cell] for subject in group]) as progress:
            outcomes = self.measuring.run(group, domain, progress)
        for cell, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                self.states[cell].error = _failure("measure", outcome)
            else:
                measured = self.states[cell].measured
                measured[domain] = replace(measured[domain], every=outcome) if every else outcome

    def _study(self, state: _State) -> None:
        """Makes the cell's subject and runs its studies, each of which is stored when it is done."""
        if state.stages is None:
            return
        saes = self.saes.at({made.site: made for made in state.stages.saes})
        studied = StudiedCell(state.item.cell, state.stages, lambda: saes)
        title = state.item.cell.title
        if state.stages.subject:
            text = f"making {state.stages.subject.title} for {title}"
            self._guard([state], "subject", partial(self._make_subject, state, studied, text))
        for study in state.item.cell.experiment.studies:
            if state.error is None:
                self._guard([state], study.label, partial(self._run_study, state, studied, study))

    def _make_subject(self, state: _State, studied: StudiedCell, text: str) -> None:
        with self._meter(text, [state]) as progress:
            self.studying.make_subject(studied, progress)

    def _run_study(self, state: _State, studied: StudiedCell, study: Study) -> None:
        with self._meter(f"{study.label} of {state.item.cell.title}", [state]) as progress:
            state.findings[study.label] = self.studying.study(studied, study, progress)

    def _load(self, made: SaeStages) -> SparseAutoencoder:
        return self.training.load(made).to(self.models.device).eval()

    def _write(self, state: _State) -> None:
        """Writes the cell's record, whatever became of it."""
        if state.error is None:
            self._guard([state], "score", partial(self._score, state))
        ok = state.error is None
        record = build_record(
            self.job,
            state.item,
            state.stages,
            status="ok" if ok else "failed",
            error=state.error,
            metrics=state.numbers if ok else None,
            artifacts=artifacts_of(self.store, state.stages) if state.stages else (),
            warnings=tuple(state.warnings) if ok else (),
            notes=tuple(self._notes(state)) if ok else (),
            cost=self._cost(state),
        )
        status: str = record.status
        try:
            write_record(
                self.job.results, state.item.cell, record, sidecar_of(state.measured, state.findings) if ok else {}
            )
        except StoreError as error:  # a disk that is full now may have room for the next cell's
            self.report(Event("note", f"{state.item.cell.title} has no record: {error}"))
            status = "failed"
        self.report(Event("done", state.item.cell.title, status=status))

    def _score(self, state: _State) -> None:
        numbers = numbers_of(state.item, state.measured, state.findings)
        budgeted = any(value.budget is not None for value in numbers)
        state.numbers = list(beyond_training(numbers, self._trained_k(state) if budgeted else None))
        state.warnings = list(self._warnings(state))

    def _trained_k(self, state: _State) -> int | None:
        """Active latents per token in training, where their number is fixed."""
        sae = state.item.cell.experiment.sae
        if isinstance(sae, Variant) and sae.activation is not None:
            return sae.max_budget
        return self.saes.get(state.stages.saes[0]).trained_k if sae and state.stages else None

    def _cost(self, state: _State) -> RunCost:
        trained = state.stages.saes if state.stages else ()
        speed = next((found for made in trained if (found := self.training.speeds.get(made.stage.key))), None)
        memory = next((found for made in trained if (found := self.training.memory_of(made))), None)
        return RunCost(
            wall_seconds={stage: round(value, 3) for stage, value in state.seconds.items()},
            peak_memory_bytes=peak_memory_bytes(),
            training_memory_bytes=memory,
            tokens_per_second=speed and round(speed),
        )

    def _warnings(self, state: _State) -> Iterable[str]:
        for found in state.findings.values():
            yield from found.warnings
        yield from dict.fromkeys(map(_repeated, (value for value in state.numbers if value.repeats)))
        yield from dict.fromkeys(map(_beyond, (value for value in state.numbers if value.trained_k)))
        trained = [below for _, below in _levels(state.stages)]
        yield from training_warnings([one for made in trained if (one := self.training.record_of(made))])
        yield from self._trained_on(state)
        for name, measured in state.measured.items():
            tokens: EvalTokens = measured.tokens
            wanted = state.item.cell.experiment.dataset.eval[name].documents or 0
            if len(tokens.digests) + tokens.skipped < wanted:
                yield f"{name}: the dataset holds only {len(tokens.digests) + tokens.skipped} of {wanted} documents"
            yield from _left_out(name, measured.baseline)
            if tokens.skipped:
                yield f"{name}: {tokens.skipped} documents were left out because they have fewer than 2 tokens"

    def _trained_on(self, state: _State) -> Iterator[str]:
        """Evaluation documents that are among the texts of its SAEs and of those below them."""
        if not state.measured:
            return
        try:
            trained = list(self._train_tokens(state))
        except NotAvailable as error:
            yield f"evaluation and training documents were not compared: {error}"
            return
        for name, measured in state.measured.items():
            tokens: EvalTokens = measured.tokens
            if shared := overlap(trained, tokens):
                yield f"{name}: {shared} of {len(tokens.digests)} evaluation documents are among the training documents"

    def _notes(self, state: _State) -> Iterator[str]:
        """What there is to know of the texts that were read, of those whose tokens were compared just now."""
        keys = {made.tokens.key for _, made in _levels(state.stages) if made.tokens}
        trained = [tokens for key, tokens in self.train_tokens.items() if key in keys]
        yield from dict.fromkeys(f"training texts: {note}" for train in trained for note in train.notes)
        for name, measured in state.measured.items():
            yield from (f"{name}: {note}" for note in measured.tokens.notes)

    def _train_tokens(self, state: _State) -> Iterator[TrainTokens]:
        """What the cell's SAEs and those below them were trained on, each read once for all cells that share it."""
        model = state.item.cell.experiment.model
        for made in {made.tokens.key: made for _, made in _levels(state.stages) if made.tokens}.values():
            assert made.tokens is not None
            if made.tokens.key not in self.train_tokens:  # damaged or evicted, they are made again
                self.train_tokens[made.tokens.key] = make_train_tokens(self.store, made, self.models, model)
            yield self.train_tokens[made.tokens.key]

    def _meter(self, what: str, states: Iterable[_State]) -> ProgressMeter:
        """What a piece of work done for some cells tells its progress to; left when the work has ended."""
        keys = tuple(state.item.key for state in states)
        return ProgressMeter(what, lambda message: self.report(Event("progress", progress=message)), keys)


def _together(cells: Sequence[Cell]) -> str:
    """How cells that something is done for are called in a few words."""
    names, seeds = {cell.origin.name for cell in cells}, {cell.seed for cell in cells}
    if len({*cells}) == 1:
        return cells[0].title
    return (min(names) if len(names) == 1 else f"{len(names)} specs") + "".join(
        f"[seed={s}]" for s in seeds if len(seeds) == 1
    )


def _levels(stages: CellStages | None) -> Iterator[tuple[int, SaeStages]]:
    """The SAEs of a cell and all they stand on, each with its level."""
    for made in stages.saes if stages else ():
        yield from made.levels()


def _left_out(domain: str, baseline: Baseline) -> Iterator[str]:
    counts = {name: float(baseline.statistics[name].sum()) for name in ("tokens", "massive", "named")}
    if (share := share_left_out(counts)) > MUCH:
        yield (
            f"{domain}: {share:.1%} of the tokens are left out, {counts['massive']:.0f} massive ones and {counts['named']:.0f} that "
            "`leave_out` names: the numbers are about the others"
        )


def _repeated(value: MetricValue) -> str:
    measured = (value.n or 0) + value.repeats
    return f"{value.domain}: {value.n} of {measured} are distinct; those that repeat them count once in intervals and tests"


def _beyond(value: MetricValue) -> str:
    return f"the budget {value.budget} exceeds the k = {value.trained_k} it was trained with: marked † in tables"


def _failure(stage: str, error: Exception) -> Failure:
    if not isinstance(error, LatentbenchError):
        traceback.print_exception(
            error
        )  # an error of ours says all in its message; of others the worker's log has more
    return Failure(stage=stage, type=type(error).__name__, message=str(error)[:2000] or type(error).__name__)
