"""The part of a job in which subjects are made and studies are run, each in a lab of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.activations.site import Site
from harness.activations.tokens import EvalTokens
from harness.errors import NotAvailable
from harness.execute.findings import from_content, to_content
from harness.execute.stages import Models, keep, make_eval_tokens, stored
from harness.lab import Content, Lab
from harness.metrics.study import Findings, Study
from harness.plan.stage import CellStages, Stage
from harness.sae.base import SparseAutoencoder
from harness.section import Json
from harness.spec.cells import Cell
from harness.store.store import Store

Progress = Callable[[int, int], None]
Saes = Callable[[], Mapping[Site, SparseAutoencoder]]

CACHE = "cache"
"""Folder of the store for what is keyed by its own content."""


@dataclass(frozen=True)
class Bench:
    """A cell at work: its stages and a way to get its SAEs."""

    cell: Cell
    stages: CellStages
    saes: Saes


class Studying:
    """Makes subjects, runs studies, and stores both."""

    def __init__(self, store: Store, models: Models) -> None:
        self.store, self.models = store, models

    def make_subject(self, bench: Bench, progress: Progress) -> None:
        """Steering vectors or flow maps, unless they are in the store."""
        section, stage = bench.cell.experiment.subject, bench.stages.subject
        if section is None or stage is None or self.store.get(stage.kind, stage.key):
            return
        content = section.make(self._lab(bench, stage, progress))
        self._finish(stage, content)

    def study(self, bench: Bench, study: Study, progress: Progress) -> Findings:
        """What a study finds, from the store or measured now."""
        stage = bench.stages.studies[study.metric]
        content = stored(self.store, stage, Content)
        if content is None:
            content = to_content(study.run(self._lab(bench, stage, progress)))
            self._finish(stage, content)
        return from_content(content)

    def _finish(self, stage: Stage, content: Content) -> None:
        keep(self.store, stage, content.tensors, content.meta)
        self.store.drop_checkpoint(stage.key)

    def _lab(self, bench: Bench, stage: Stage, progress: Progress) -> Lab:
        experiment = bench.cell.experiment
        lab = Lab(
            experiment=experiment,
            key=stage.key,
            roots=self.models.roots,
            device=self.models.device,
            scratch=self.store.checkpoint(stage.key),
            cache=self.store.root / CACHE,
            model=lambda: self.models.model(experiment.model),
            tokenizer=lambda: self.models.tokenizer(experiment.model),
            saes=bench.saes,
            subject=lambda: self._subject(bench, lab),
            tokens=lambda domain: self._tokens(bench, domain),
            shared=lambda kind, payload, make: self._shared(bench.stages.model, kind, payload, make),
            progress=progress,
        )
        return lab

    def _subject(self, bench: Bench, lab: Lab) -> Any:
        section, stage = bench.cell.experiment.subject, bench.stages.subject
        if section is None or stage is None:
            raise NotAvailable("the spec has no `steering:` or `flow:` section")
        content = stored(self.store, stage, Content)
        if content is None:
            raise NotAvailable(f"{stage.title} is not in the store")
        return section.read(content, lab)

    def _tokens(self, bench: Bench, domain: str) -> EvalTokens:
        experiment, stage = bench.cell.experiment, bench.stages.domains[domain].tokens
        tokenizer = self.models.tokenizer(experiment.model)
        return make_eval_tokens(self.store, stage, experiment.dataset.eval[domain], tokenizer, self.models.roots)

    def _shared(self, model: Json, kind: str, payload: Json, make: Callable[[], Content]) -> Content:
        stage = Stage("shared", kind, {"kind": kind, "model": model, "content": payload})
        content = stored(self.store, stage, Content)
        if content is None:
            content = make()
            keep(self.store, stage, content.tensors, content.meta)
        return content
