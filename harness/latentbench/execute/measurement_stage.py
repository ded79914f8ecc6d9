"""The measurement stage of a job: one pass per evaluation domain serves every SAE of the job.

The hidden states of a pass are computed once for all SAEs; only what an SAE changes behind its place is run again for
each. Baselines (the model alone) and measurements are stages of their own: each is made by one worker and then found in
the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from latentbench.activations.tokens import EvalTokens
from latentbench.core.border import contained
from latentbench.core.hashing import digest
from latentbench.core.progress import Progress
from latentbench.core.sites import Site
from latentbench.core.stage import Stage
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.execute.job_inputs import ModelCache, keep, make_eval_tokens, stored_baseline, stored_measurement
from latentbench.metrics.base import declared
from latentbench.plan.stages import CellStages, DomainStages
from latentbench.reconstruction.shared_pass import MeasurementRequest, measure
from latentbench.reconstruction.statistics import Baseline, Measurement
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.spec.cells import Cell
from latentbench.store.store import Ref, Store


@dataclass(frozen=True)
class MeasuredCell:
    """A cell with its stages and a way to get its SAE."""

    cell: Cell
    stages: CellStages
    sae: Callable[[], SparseAutoencoder]
    every: bool = False
    """Whether every token counts, for the metric that asks for that, instead of those of the spec's own rule."""

    def at(self, domain: str) -> DomainStages:
        """What is to be measured on a domain."""
        own = self.stages.domains[domain]
        stages = own.every if self.every else own
        assert stages is not None  # only cells with such a metric are measured so
        return stages

    @property
    def rule(self) -> TokenRule:
        """Which tokens count."""
        return EVERY_TOKEN if self.every else self.cell.experiment.token_rule

    @property
    def site(self) -> Site:
        """Where its SAE reads."""
        return self.stages.saes[0].site

    def baseline(self, domain: str) -> Stage:
        """The model without an SAE on a domain."""
        stage = self.at(domain).baseline
        assert stage is not None  # only cells with shared metrics are measured here
        return stage

    def measurements(self, domain: str) -> list[Ref]:
        """What is measured of its SAE on a domain."""
        return [stage.ref for stage in self.at(domain).measurements.values()]


@dataclass(frozen=True)
class DomainMeasurement:
    """What was measured for one cell on one domain."""

    tokens: EvalTokens
    baseline: Baseline
    measurements: dict[int | None, Measurement]
    """By budget; None is the SAE as it was trained."""
    every: DomainMeasurement | None = None
    """The same where every token counts."""


class MeasurementRunner:
    """Measures the cells of a job, domain by domain."""

    def __init__(self, store: Store, models: ModelCache) -> None:
        self.store, self.models = store, models

    def together(self, subjects: list[MeasuredCell], domain: str) -> list[list[MeasuredCell]]:
        """Cells that read the same tokens of the same documents with the same model, in groups."""
        groups: dict[str, list[MeasuredCell]] = defaultdict(list)
        for subject in subjects:
            groups[digest("pass", [subject.at(domain).tokens.key, subject.rule.plain()])].append(subject)
        return list(groups.values())

    def run(
        self, subjects: list[MeasuredCell], domain: str, progress: Progress
    ) -> dict[Cell, DomainMeasurement | Exception]:
        """What is measured on `domain` for cells that read the same documents with the same model, or what went
        wrong."""
        experiment = subjects[0].cell.experiment
        tokens_stage = subjects[0].at(domain).tokens
        data = experiment.dataset.eval[domain]
        tokens = make_eval_tokens(self.store, tokens_stage, data, self.models, experiment.model)
        failures: dict[Cell, Exception] = {}

        def make_with_baselines(refs: list[Ref]) -> None:
            # Nobody measures on a baseline that is not there yet, so what stands on it is made in the same pass.
            mine = [s for s in subjects if s.baseline(domain).ref in refs]
            with self.store.taking(ref for s in mine for ref in s.measurements(domain)) as above:
                failures.update(self._pass(mine, domain, tokens, {*refs, *above}, progress))

        def make(refs: list[Ref]) -> None:
            failures.update(self._pass(subjects, domain, tokens, {*refs}, progress))

        # Baselines first: a measurement is computed against its baseline, which another worker may be making.
        self.store.share({s.baseline(domain).ref for s in subjects}, make_with_baselines)
        alive = [s for s in subjects if s.cell not in failures]
        self.store.share({ref for s in alive for ref in s.measurements(domain)}, make)
        return {s.cell: failures.get(s.cell) or self._collect(s, domain, tokens) for s in subjects}

    def _pass(
        self, subjects: list[MeasuredCell], domain: str, tokens: EvalTokens, refs: set[Ref], progress: Progress
    ) -> dict[Cell, Exception]:
        """One pass over the documents that makes the baselines and measurements among `refs`."""
        stages = {s.cell: s.at(domain) for s in subjects}
        bases = {s.cell: s.baseline(domain) for s in subjects}
        requests: dict[str, MeasurementRequest] = {}
        failures: dict[Cell, Exception] = {}
        for subject in subjects:
            try:
                requests |= self._requests(subject, stages[subject.cell], refs)
            except BaseException as error:  # one SAE that cannot be loaded must not cost the others
                failures[subject.cell] = contained(error)
        lacking = {stage.ref: stage for cell, stage in bases.items() if stage.ref in refs and cell not in failures}
        if not requests and not lacking:
            return failures
        results = measure(
            self.models.model(subjects[0].cell.experiment.model, tokens.ids.shape[1]),
            tokens,
            list(requests.values()),
            baselines=self._known(bases.values()),
            sites=[s.site for s in subjects],
            splice_sites=[s.site for s in subjects if bases[s.cell].payload["splice"]],
            progress=progress,
            rule=subjects[0].rule,
        )
        for subject in subjects:
            self._keep_baseline(bases[subject.cell], results.baselines[subject.site])
        by_key = {m.key: m for d in stages.values() for m in d.measurements.values()}
        for measurement in results.measurements:
            keep(self.store, by_key[measurement.name], *measurement.to_tensors())
        return failures | self._failed(subjects, stages, results.failures)

    def _known(self, stages: Iterable[Stage]) -> dict[Site, Baseline]:
        """Baselines that are in the store; of two at one site the one with cross-entropies."""
        found = [baseline for stage in stages if (baseline := stored_baseline(self.store, stage))]
        return {baseline.site: baseline for baseline in sorted(found, key=lambda b: b.spliced)}

    def _requests(self, subject: MeasuredCell, domain: DomainStages, refs: set[Ref]) -> dict[str, MeasurementRequest]:
        """The subject's measurements among `refs`, by stage key."""
        missing = {budget: stage for budget, stage in domain.measurements.items() if stage.ref in refs}
        if not missing:
            return {}
        sae, metrics = subject.sae(), subject.cell.experiment.shared_metrics
        return {
            stage.key: MeasurementRequest(
                stage.key, sae, subject.site, (budget,), bool(stage.payload["splice"]), declared(metrics, budget)
            )
            for budget, stage in missing.items()
        }

    def _keep_baseline(self, stage: Stage, baseline: Baseline) -> None:
        """Stores what the stage's key stands for, whatever else the pass had to measure at its site."""
        if not self.store.has(stage.kind, stage.key):
            asked = baseline if stage.payload["splice"] else baseline.unspliced()
            keep(self.store, stage, *asked.to_tensors())

    def _failed(
        self, subjects: list[MeasuredCell], stages: dict[Cell, DomainStages], failures: dict[str, Exception]
    ) -> dict[Cell, Exception]:
        keys = {s.cell: [m.key for m in stages[s.cell].measurements.values()] for s in subjects}
        return {cell: failures[key] for cell, wanted in keys.items() for key in wanted if key in failures}

    def _collect(self, subject: MeasuredCell, domain: str, tokens: EvalTokens) -> DomainMeasurement:
        baseline = stored_baseline(self.store, subject.baseline(domain))
        stages = subject.at(domain).measurements
        measurements = {b: stored_measurement(self.store, stage) for b, stage in stages.items()}
        assert baseline is not None  # stored a moment ago
        assert None not in measurements.values()
        return DomainMeasurement(tokens, baseline, {b: m for b, m in measurements.items() if m is not None})
