"""The study stage of a job: subjects are made and studies are run, each in a context of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentbench.activations.tokens import EvalTokens
from latentbench.core.errors import CellFailed, NotAvailable
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.distributed.worker_process import Progress
from latentbench.execute.job_inputs import ModelCache, keep, make_eval_tokens, stored
from latentbench.plan.stages import CellStages, Stage
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.spec.cells import Cell
from latentbench.spec.checks import texts_of
from latentbench.store.store import Store
from latentbench.study.context import Content, StageContext
from latentbench.study.storage import from_content, to_content
from latentbench.study.study import Findings, Study

Saes = Callable[[], Mapping[Site, SparseAutoencoder]]

CACHE = "cache"
"""Folder of the store for what is keyed by its own content."""


@dataclass(frozen=True)
class StudiedCell:
    """A cell at work: its stages and a way to get its SAEs."""

    cell: Cell
    stages: CellStages
    saes: Saes


class StudyRunner:
    """Makes subjects, runs studies, and stores both."""

    def __init__(self, store: Store, models: ModelCache) -> None:
        self.store, self.models = store, models

    def make_subject(self, bench: StudiedCell, progress: Progress) -> None:
        """Steering vectors or flow maps, unless they are in the store."""
        section, stage = bench.cell.experiment.subject, bench.stages.subject
        if section is None or stage is None:
            return
        lab = self._lab(bench, stage, progress)

        def make(_: object) -> None:
            content = section.make(lab)
            if not isinstance(content, Content):
                raise CellFailed(f"{stage.title} came as {type(content).__name__}; `make` must return a Content")
            section.read(content, lab)  # what cannot be read must not be stored: every later run would find it there
            self._finish(stage, content)

        self.store.share([stage.ref], make)

    def study(self, bench: StudiedCell, study: Study, progress: Progress) -> Findings:
        """What a study finds, from the store or measured now."""
        stage = bench.stages.studies[study.label]
        lab = self._lab(bench, stage, progress)
        return from_content(self._once(stage, lambda: to_content(study.run(lab))))

    def _once(self, stage: Stage, make: Callable[[], Content]) -> Content:
        """The stage's content from the store, or made and stored by one worker alone."""
        return self.store.once(
            *stage.ref, lambda: stored(self.store, stage, Content), lambda: self._finish(stage, make())
        )

    def _finish(self, stage: Stage, content: Content) -> Content:
        keep(self.store, stage, content.tensors, content.meta)
        self.store.drop_checkpoint(stage.key)
        return content

    def _lab(self, bench: StudiedCell, stage: Stage, progress: Progress) -> StageContext:
        experiment = bench.cell.experiment
        longest = max((data.context for data in texts_of(experiment).values()), default=0)
        lab = StageContext(
            experiment=experiment,
            key=stage.key,
            roots=self.models.roots,
            device=self.models.device,
            scratch=self.store.checkpoint(stage.key),
            cache=self.store.root / CACHE,
            model=lambda: self.models.model(experiment.model, longest),
            tokenizer=lambda: self.models.tokenizer(experiment.model),
            saes=bench.saes,
            subject=lambda: self._subject(bench, lab),
            tokens=lambda domain: self._tokens(bench, domain),
            shared=lambda kind, payload, make: self._shared(bench.stages.model, kind, payload, make),
            progress=progress,
        )
        return lab

    def _subject(self, bench: StudiedCell, lab: StageContext) -> Any:
        section, stage = bench.cell.experiment.subject, bench.stages.subject
        if section is None or stage is None:
            raise NotAvailable("the spec has no `steering:` or `flow:` section")
        content = stored(self.store, stage, Content)
        if content is None:
            raise NotAvailable(f"{stage.title} is not in the store")
        return section.read(content, lab)

    def _tokens(self, bench: StudiedCell, domain: str) -> EvalTokens:
        experiment, stage = bench.cell.experiment, bench.stages.domains[domain].tokens
        return make_eval_tokens(self.store, stage, experiment.dataset.eval[domain], self.models, experiment.model)

    def _shared(self, model: Json, kind: str, payload: Json, make: Callable[[], Content]) -> Content:
        return self._once(Stage("shared", kind, {"kind": kind, "model": model, "content": payload}), make)
