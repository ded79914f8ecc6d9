"""The measuring half of a job: one pass per evaluation domain serves every SAE of the job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from harness.activations.site import Site
from harness.activations.tokens import EvalTokens
from harness.execute.stages import Models, keep, make_eval_tokens, stored_baseline, stored_measurement
from harness.measure.documents import Request, measure
from harness.measure.statistics import Baseline, Measurement
from harness.plan.stage import CellStages, DomainStages, Stage
from harness.sae.base import SparseAutoencoder
from harness.spec.cells import Cell
from harness.store.store import Store

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Subject:
    """A cell with its stages and a way to get its SAE."""

    cell: Cell
    stages: CellStages
    sae: Callable[[], SparseAutoencoder]

    @property
    def site(self) -> Site:
        """Where its SAE reads."""
        return self.stages.saes[0].site

    def baseline(self, domain: str) -> Stage:
        """The model without an SAE on a domain."""
        stage = self.stages.domains[domain].baseline
        assert stage is not None  # only cells with shared metrics are measured here
        return stage


@dataclass(frozen=True)
class Measured:
    """What one domain gave for one cell."""

    tokens: EvalTokens
    baseline: Baseline
    measurements: dict[int | None, Measurement]


class Measuring:
    """Measures the cells of a job, domain by domain."""

    def __init__(self, store: Store, models: Models) -> None:
        self.store, self.models = store, models

    def together(self, subjects: list[Subject], domain: str) -> list[list[Subject]]:
        """Subjects that read the same documents with the same model, in groups."""
        groups: dict[str, list[Subject]] = defaultdict(list)
        for subject in subjects:
            groups[subject.stages.domains[domain].tokens.key].append(subject)
        return list(groups.values())

    def run(self, subjects: list[Subject], domain: str, progress: Progress) -> dict[Cell, Measured | Exception]:
        """What `domain` gives for subjects that read the same documents with the same model."""
        experiment = subjects[0].cell.experiment
        tokens_stage = subjects[0].stages.domains[domain].tokens
        tokenizer = self.models.tokenizer(experiment.model)
        tokens = make_eval_tokens(
            self.store, tokens_stage, experiment.dataset.eval[domain], tokenizer, self.models.roots
        )
        failures = self._measure_missing(subjects, domain, tokens, progress)
        return {s.cell: failures.get(s.cell) or self._collect(s, domain, tokens) for s in subjects}

    def _measure_missing(
        self, subjects: list[Subject], domain: str, tokens: EvalTokens, progress: Progress
    ) -> dict[Cell, Exception]:
        stages = {s.cell: s.stages.domains[domain] for s in subjects}
        bases = {s.cell: s.baseline(domain) for s in subjects}
        baselines = {b.site: b for stage in bases.values() if (b := stored_baseline(self.store, stage))}
        requests: dict[str, Request] = {}
        failures: dict[Cell, Exception] = {}
        for subject in subjects:
            try:
                requests |= self._requests(subject, stages[subject.cell])
            except Exception as error:  # one SAE that cannot be loaded must not cost the others
                failures[subject.cell] = error
        wanted = {stage.key: stage for cell, stage in bases.items() if cell not in failures}
        lacking = [stage for stage in wanted.values() if not self.store.has(stage.kind, stage.key)]
        if not requests and not lacking:
            return failures
        results = measure(
            self.models.model(subjects[0].cell.experiment.model),
            tokens,
            list(requests.values()),
            baselines=baselines,
            sites=[s.site for s in subjects],
            splice_sites=[s.site for s in subjects if bases[s.cell].payload["splice"]],
            progress=progress,
        )
        for subject in subjects:
            self._keep_baseline(bases[subject.cell], results.baselines[subject.site])
        by_key = {m.key: m for d in stages.values() for m in d.measurements.values()}
        for measurement in results.measurements:
            keep(self.store, by_key[measurement.name], *measurement.to_tensors())
        return failures | self._failed(subjects, stages, results.failures)

    def _requests(self, subject: Subject, domain: DomainStages) -> dict[str, Request]:
        """What is not in the store yet, by stage key."""
        missing = {
            b: stage for b, stage in domain.measurements.items() if stored_measurement(self.store, stage) is None
        }
        if not missing:
            return {}
        sae = subject.sae()
        return {
            stage.key: Request(stage.key, sae, subject.site, (budget,), splice=bool(stage.payload["splice"]))
            for budget, stage in missing.items()
        }

    def _keep_baseline(self, stage: Stage, baseline: Baseline) -> None:
        """Stores what the stage's key stands for, whatever else the pass had to measure at its site."""
        if not self.store.has(stage.kind, stage.key):
            asked = baseline if stage.payload["splice"] else baseline.unspliced()
            keep(self.store, stage, *asked.to_tensors())

    def _failed(
        self, subjects: list[Subject], stages: dict[Cell, DomainStages], failures: dict[str, Exception]
    ) -> dict[Cell, Exception]:
        keys = {s.cell: [m.key for m in stages[s.cell].measurements.values()] for s in subjects}
        return {cell: failures[key] for cell, wanted in keys.items() for key in wanted if key in failures}

    def _collect(self, subject: Subject, domain: str, tokens: EvalTokens) -> Measured:
        baseline = stored_baseline(self.store, subject.baseline(domain))
        stages = subject.stages.domains[domain].measurements
        measurements = {b: stored_measurement(self.store, stage) for b, stage in stages.items()}
        assert baseline is not None  # stored a moment ago
        assert None not in measurements.values()
        return Measured(tokens, baseline, {b: m for b, m in measurements.items() if m is not None})
