"""The study stage of a job: subjects (steering vectors, flow maps) are made and studies are run, each in a context of
its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from latentbench.activations.state_shards import StatesOrigin
from latentbench.activations.tokens import EvalTokens
from latentbench.core.errors import CellFailed, NotAvailable
from latentbench.core.progress import Progress
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.core.stage import Stage
from latentbench.execute.job_inputs import ModelCache, keep, make_eval_tokens, storing
from latentbench.plan.stages import CellStages, OriginStages, SweptStages
from latentbench.reconstruction.document_states import StoredDocumentStates, stored_document_states
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.spec.cells import Cell
from latentbench.spec.fit import texts_of
from latentbench.spec.selection import on_selection, swept_method
from latentbench.steering.method import SteeringMethod
from latentbench.steering.sweep import check_apart, choose, measure_sweep
from latentbench.store.store import Store
from latentbench.study.context import Content, StageContext, Subject, SubjectHome
from latentbench.study.storage import from_content, stored_content, to_content
from latentbench.study.study import Findings, Study

CACHE = "cache"
"""Folder of the store for what is keyed by its own content."""


@dataclass(frozen=True)
class StudiedCell:
    """A cell at work: its stages and a way to get its SAEs."""

    cell: Cell
    stages: CellStages
    saes: Callable[[], Mapping[Site, SparseAutoencoder]]


def _at_home(origin: OriginStages) -> StudiedCell:
    return StudiedCell(origin.cell, origin.stages, dict)


class StudyRunner:
    """Makes subjects, runs studies, and stores both."""

    def __init__(self, store: Store, models: ModelCache) -> None:
        self.store, self.models = store, models

    def make_subject(self, studied: StudiedCell, progress: Progress) -> None:
        """Steering vectors or flow maps, unless they are in the store."""
        subject, stage = studied.cell.experiment.subject, studied.stages.subject
        if subject is None or stage is None:
            return
        if studied.stages.origin and not self.store.has(*stage.ref):
            self.make_subject(_at_home(studied.stages.origin), progress)
        method = swept_method(studied.cell.experiment)
        if method is None or studied.stages.swept is None:
            self._make(studied, subject, stage, progress)
        else:
            self._choose(studied, method, studied.stages.swept, stage, progress)

    def _make(self, studied: StudiedCell, subject: Subject, stage: Stage, progress: Progress) -> None:
        def make(_: object) -> None:
            with self._context(studied, stage, progress) as context:
                content = subject.make(context)
                if not isinstance(content, Content):
                    raise CellFailed(f"{stage.title} came as {type(content).__name__}; `make` must return a Content")
                subject.read(content, context)  # what cannot be read must not be stored: later runs would find it there
            self._finish(stage, content)

        self.store.share([stage.ref], make)

    def _choose(
        self, studied: StudiedCell, method: SteeringMethod, swept: SweptStages, stage: Stage, progress: Progress
    ) -> None:
        """What `auto` needs: the candidates, what each point gains and costs on selection data, and the one that is chosen."""
        cell = replace(studied.cell, experiment=on_selection(studied.cell.experiment))
        selection = replace(studied, cell=cell, stages=replace(studied.stages, domains=swept.domains))
        # In every cell, whatever is stored of the sweep: which data is reported on is in no key of it.
        with self._context(studied, stage, progress) as test, self._context(selection, swept.sweep, progress) as other:
            check_apart(method, other, studied.cell.experiment.studies, test)
        self._make(studied, method.candidates(), swept.candidates, progress)
        candidates = stored_content(self.store, *swept.candidates.ref)
        if candidates is None:
            raise NotAvailable(f"{swept.candidates.title} is not in the store")

        def measure() -> Content:
            with self._context(selection, swept.sweep, progress) as context:
                return measure_sweep(method, candidates, context)

        measured = self._once(swept.sweep, measure)
        self.store.share([stage.ref], lambda _: self._finish(stage, choose(method, candidates, measured)))

    def study(self, studied: StudiedCell, study: Study, progress: Progress) -> Findings:
        """What a study finds, from the store or measured now."""
        stage = studied.stages.studies[study.label]

        def run() -> Content:
            with self._context(studied, stage, progress) as context:
                return to_content(study.run(context))

        # Also what was measured now comes through content: a study must find the same whether it was stored or not.
        return from_content(self._once(stage, run))

    def _once(self, stage: Stage, make: Callable[[], Content]) -> Content:
        """The stage's content from the store, or made and stored by this worker alone."""
        return self.store.once(
            *stage.ref, lambda: stored_content(self.store, *stage.ref), lambda: self._finish(stage, make())
        )

    def _finish(self, stage: Stage, content: Content) -> Content:
        """Stores the content, after which the stage's checkpoint is of no use."""
        keep(self.store, stage, content.tensors, content.meta)
        self.store.drop_checkpoint(stage.key)
        return content

    @contextmanager
    def _context(self, studied: StudiedCell, stage: Stage, progress: Progress) -> Iterator[StageContext]:
        """What the stage works with; the hidden states that it reads are kept in the store while this is open."""
        experiment = studied.cell.experiment
        # The model is refused when it has no positions for the longest text that any part of the cell may read.
        longest = max((data.context for data in texts_of(experiment).values()), default=0)
        context = StageContext(
            experiment=experiment,
            key=stage.key,
            roots=self.models.roots,
            device=self.models.device,
            scratch=self.store.checkpoint(stage.key),
            cache=self.store.root / CACHE,
            model=lambda: self.models.model(experiment.model, longest),
            tokenizer=lambda: self.models.tokenizer(experiment.model),
            saes=studied.saes,
            subject=lambda: self._subject(studied, context),
            tokens=lambda domain: self._tokens(studied, domain),
            shared=lambda kind, payload, make: self._shared(studied.stages.model, kind, payload, make),
            states=lambda domain, sites: self._states(studied, domain, sites, progress, held),
            progress=progress,
            home=lambda: self._home(studied, progress),
            chosen_by=lambda: self._sweep_of(studied),
            findings=lambda study: self.study(studied, study, progress),
        )
        with ExitStack() as held:
            yield context

    def _subject(self, studied: StudiedCell, context: StageContext) -> Any:
        subject, stage = studied.cell.experiment.subject, studied.stages.subject
        if subject is None or stage is None:
            raise NotAvailable("the spec has no `steering:` or `flow:`")
        content = stored_content(self.store, *stage.ref)
        if content is None:
            raise NotAvailable(f"{stage.title} is not in the store")
        return subject.settled(content).read(content, context)

    def _sweep_of(self, studied: StudiedCell) -> Content | None:
        swept = studied.stages.swept
        return None if swept is None else stored_content(self.store, *swept.sweep.ref)

    def _home(self, studied: StudiedCell, progress: Progress) -> SubjectHome:
        """Where the subject that this cell's is made from was made; it is made anew where the store has lost it."""
        if (origin := studied.stages.origin) is None:
            raise NotAvailable("the subject of this cell is not made from another one's")
        there = _at_home(origin)
        self.make_subject(there, progress)
        content = stored_content(self.store, *origin.subject.ref)
        if content is None:
            raise NotAvailable(f"{origin.subject.title} is not in the store")
        with self._context(there, origin.subject, progress) as context:
            return SubjectHome(content, self._subject(there, context), context.model)

    def _tokens(self, studied: StudiedCell, domain: str) -> EvalTokens:
        experiment, stage = studied.cell.experiment, studied.stages.domains[domain].tokens
        return make_eval_tokens(self.store, stage, experiment.dataset.eval[domain], self.models, experiment.model)

    def _states(
        self, studied: StudiedCell, domain: str, sites: Sequence[Site], progress: Progress, held: ExitStack
    ) -> StoredDocumentStates | None:
        experiment, tokens = studied.cell.experiment, self._tokens(studied, domain)
        model = self.models.model(experiment.model, tokens.ids.shape[1])
        origin = StatesOrigin(studied.stages.model, studied.stages.domains[domain].tokens.key)
        mode = experiment.resources.cache
        found = stored_document_states(self.store, origin, model, tokens, sites, mode, storing(progress))
        if found:
            held.enter_context(self.store.using(found.keys))
        return found

    def _shared(self, model: Json, kind: str, payload: Json, make: Callable[[], Content]) -> Content:
        # Keyed without the cell, so that all cells with this model find what one of them made.
        return self._once(Stage("shared", kind, {"kind": kind, "model": model, "content": payload}), make)
