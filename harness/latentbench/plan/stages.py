"""How a cell's stages follow from its spec: what has to exist before its row can be written, each named by what determines its content.

    train tokens ──▶ sae ──┬──────────┐      (an SAE built on a base SAE has that as a parent too)
    eval tokens ───▶ baseline ────────┴──▶ measurement      (one per evaluation domain and budget)
                           └▶ subject ───▶ study            (steering vectors or flow maps; studies read SAEs as well; a
                                                             subject may be made from that of another cell)
    model                                                   (only what has to be converted first; all others have its
                                                             identity in their payload, not its key among their parents)

A stage's key is the sha256 of its payload and of its parents' keys (a Merkle tree), so the same key means the same
content on any machine. Device, workers, paths, labels, resources and batch sizes of evaluation are in no key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import digest
from latentbench.core.held_out import HeldOut
from latentbench.core.once import Once
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json, SpecModel
from latentbench.core.stage import Stage
from latentbench.core.text import plural
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.metrics.base import MEASUREMENT_VERSION, declared
from latentbench.sae.options import Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.spec.cells import Cell
from latentbench.spec.experiment import Experiment
from latentbench.spec.selection import on_selection, selection_domains, swept_method
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Subject
from latentbench.study.study import Study


@dataclass(frozen=True)
class DomainStages:
    """What is measured on one evaluation domain."""

    tokens: Stage
    baseline: Stage | None = None
    """None where no metric needs the pass that all SAEs share."""
    measurements: dict[int | None, Stage] = field(default_factory=dict)
    """One for each budget; None is the SAE as it was trained."""
    every: DomainStages | None = None
    """The same SAE on the same documents where every token counts; None where no metric asks."""

    def all(self) -> list[Stage]:
        """In an order in which they can be made."""
        own = [self.tokens, *([self.baseline] if self.baseline else []), *self.measurements.values()]
        return [*own, *(self.every.all() if self.every else [])]


@dataclass(frozen=True)
class SaeStages:
    """How an SAE comes to be: trained on texts, perhaps on top of other SAEs, or loaded."""

    section: Variant | LoadedSae
    stage: Stage
    site: Site
    """Where it reads."""
    data: DatasetAdapter | None = None
    """What it is trained on; None when it is loaded."""
    tokens: Stage | None = None
    """The training tokens of `data`."""
    bases: tuple[SaeStages, ...] = ()
    held_out: HeldOut | None = None
    """What is kept out of its training tokens."""

    def all(self) -> list[Stage]:
        """In an order in which they can be made."""
        below = [stage for base in self.bases for stage in base.all()]
        return [*below, *([self.tokens] if self.tokens else []), self.stage]

    def levels(self) -> Iterator[tuple[int, SaeStages]]:
        """This SAE and those below it with the level at which each can be made; level 0 needs no other."""
        below = [pair for base in self.bases for pair in base.levels()]
        yield from below
        yield max((level + 1 for level, _ in below), default=0), self


@dataclass(frozen=True)
class OriginStages:
    """Where a subject is made that another one is made from."""

    cell: Cell
    """The cell that steers by that subject alone: without an SAE and metrics."""
    stages: CellStages

    @property
    def subject(self) -> Stage:
        """What it is there."""
        assert self.stages.subject is not None  # such a cell is made of one
        return self.stages.subject

    def all(self) -> list[Stage]:
        """In an order in which they can be made; its texts are read without tokens."""
        above = self.stages.origin.all() if self.stages.origin else []
        return [*([self.stages.conversion] if self.stages.conversion else []), *above, self.subject]


@dataclass(frozen=True)
class SweptStages:
    """How a steering method comes to its layer and strength, where these are `auto`."""

    candidates: Stage
    """Vectors at all layers that may be chosen: the stage of a cell that states these layers."""
    domains: dict[str, DomainStages]
    """Selection texts."""
    sweep: Stage
    """What every point gains and costs there."""

    def all(self) -> list[Stage]:
        """In an order in which they can be made."""
        return [self.candidates, *(domain.tokens for domain in self.domains.values()), self.sweep]


@dataclass(frozen=True)
class CellStages:
    """All stages of one cell."""

    model: Json
    """Identity of the language model."""
    conversion: Stage | None
    """What makes the language model from files in another format; None where it is loaded as it is."""
    saes: tuple[SaeStages, ...]
    """One per site of the spec, in its order."""
    subject: Stage | None
    """Steering vectors or flow maps."""
    domains: dict[str, DomainStages]
    studies: dict[str, Stage]
    """One for each metric with a stage of its own, by the metric's name."""
    origin: OriginStages | None = None
    """What the subject is made from, where that is another cell's."""
    swept: SweptStages | None = None
    """What the subject is chosen by; None where its use is stated."""

    def all(self) -> list[Stage]:
        """In an order in which they can be made, each once."""
        found = [self.conversion] if self.conversion else []
        found += [stage for sae in self.saes for stage in sae.all()]
        found += self.origin.all() if self.origin else []
        found += self.swept.all() if self.swept else []
        found += [self.subject] if self.subject else []
        for domain in self.domains.values():
            found += domain.all()
        return list({stage.key: stage for stage in [*found, *self.studies.values()]}.values())


TRAIN_TOKENS_VERSION, EVAL_TOKENS_VERSION = 2, 1
"""Raised when the same documents and tokenizer give other stored tokens."""
STEERED_VERSION = 1
"""The measurement version of rows without an SAE: theirs does not change with what is measured of one."""


def stages_of(cell: Cell, roots: Roots) -> CellStages:
    """The stages of one cell. Raises InvalidInput when what it names cannot be identified."""
    return StageMaker(roots).of(cell)


def cell_key(cell: Cell, stages: CellStages) -> str:
    """What determines a cell's numbers: its stages and the definitions of its metrics."""
    return _cell_key(stages, _definitions(cell.experiment))


def _definitions(experiment: Experiment) -> list[Json]:
    return [{**metric.determining(), "version": metric.version} for metric in experiment.metrics]


def _cell_key(stages: CellStages, definitions: list[Json]) -> str:
    return digest("cell", {"stages": stage_keys(stages), "metrics": definitions})


def stage_keys(stages: CellStages) -> dict[str, str]:
    """Stage name to key, as written into the record."""
    named: dict[str, str] = {}
    for sae in stages.saes:
        named |= _sae_keys(sae, "" if len(stages.saes) == 1 else f"@{sae.site}")
    if stages.origin:
        named["origin"] = stages.origin.subject.key
    if stages.swept:
        named |= {"candidates": stages.swept.candidates.key, "sweep": stages.swept.sweep.key}
    if stages.subject:
        named["subject"] = stages.subject.key
    for name, domain in stages.domains.items():
        named[f"{name}/tokens"] = domain.tokens.key
        if domain.baseline:
            named[f"{name}/baseline"] = domain.baseline.key
        for budget, stage in domain.measurements.items():
            named[f"{name}/measurement" + ("" if budget is None else f"@{budget}")] = stage.key
        if domain.every:
            named[f"{name}/every_token"] = domain.every.measurements[None].key
    return named | {f"study/{name}": stage.key for name, stage in stages.studies.items()}


def _sae_keys(sae: SaeStages, where: str) -> dict[str, str]:
    named = {f"sae{where}": sae.stage.key}
    if sae.tokens:
        named["train_tokens"] = sae.tokens.key
    return named | {f"base{number or ''}{where}": base.stage.key for number, base in enumerate(sae.bases)}


def comparability(cell: Cell, stages: CellStages, roots: Roots) -> dict[str, dict[str, Json]]:
    """By domain, the facts that must agree for two rows to be ranked together on it."""
    # Rows without an SAE say what they always said, so that they are still ranked beside their older ones.
    sites, version = cell.experiment.sites, STEERED_VERSION
    place: dict[str, Json] = {}
    if sites:
        place = {"layer": ", ".join(map(str, sites)), **_rule(cell.experiment)}
        version = MEASUREMENT_VERSION
    texts = {
        name: {
            "model": stages.model,
            **place,
            "documents": domain.tokens.payload["dataset"],
            "context": domain.tokens.payload["context"],
            "tokens": domain.tokens.key[:16],
            "measurement_version": version,
        }
        for name, domain in stages.domains.items()
    }
    brought = [study.comparability(cell.experiment, roots) for study in cell.experiment.studies]
    tasks = {name: {"model": stages.model, **facts} for found in brought for name, facts in found.items()}
    return texts | tasks


def budgets_of(experiment: Experiment) -> tuple[int | None, ...]:
    """Every budget at which some metric wants the SAE measured, as trained first."""
    asked = {budget for metric in experiment.shared_metrics for budget in metric.measured_at()}
    return (None, *sorted(budget for budget in asked if budget is not None))


def splices(experiment: Experiment, budget: int | None) -> bool:
    """Whether some metric needs the reconstruction spliced into the model at this budget."""
    return any(metric.splices and budget in metric.measured_at() for metric in experiment.shared_metrics)


class StageMaker:
    """Makes the stages of many cells.

    What cells of a spec share (the model, its texts, its passes without an SAE) is identified once, and is one stage whose key is
    computed once: as sections that are written alike are one object (`latentbench.spec.cells`), that is told by the objects.
    """

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._once = Once()

    def of(self, cell: Cell) -> CellStages:
        """The stages of a cell. Raises InvalidInput when what it names cannot be identified."""
        experiment = cell.experiment
        model = self._model(experiment)
        saes = tuple(self._sae_at(site, experiment, cell.seed) for site in experiment.sites)
        origin = self._origin(cell)
        swept = self._swept(cell, saes, origin)
        subject = self._chosen(cell, swept) if swept else None
        if subject is None and experiment.subject:
            subject = self._subject(experiment.subject, cell, saes, origin)
        # Metrics of the shared pass measure one SAE; a spec with several places has only studies (`latentbench.spec.checks`).
        shared = saes[0] if saes and experiment.shared_metrics else None
        domains = {name: self._domain(name, data, experiment, shared) for name, data in experiment.dataset.eval.items()}
        parents = (*(sae.stage for sae in saes), *([subject] if subject else []))
        studies: dict[str, Stage] = {}
        for study in sorted(experiment.studies, key=lambda study: bool(study.after(experiment))):
            read = tuple(studies[other.label] for other in study.after(experiment))
            studies[study.label] = self._study(study, experiment, (*parents, *read), domains)
        return CellStages(model, self._conversion(experiment), saes, subject, domains, studies, origin, swept)

    def key_of(self, cell: Cell, stages: CellStages) -> str:
        """`cell_key` of one of the cells whose stages were made here."""
        metrics = cell.experiment.metrics
        return _cell_key(stages, self._once("metrics", (metrics,), lambda: _definitions(cell.experiment)))

    def _said(self, part: SpecModel) -> dict[str, Json]:
        """What determines a part of an experiment, which many cells have in common."""
        return self._once("determining", (part,), part.determining)

    def _model(self, experiment: Experiment) -> Json:
        return self._once("model", (experiment.model,), lambda: experiment.model.identity(self.roots))

    def _conversion(self, experiment: Experiment) -> Stage | None:
        return self._once("conversion", (experiment.model,), lambda: experiment.model.conversion(self.roots))

    def _texts(self, data: DatasetAdapter, experiment: Experiment, version: int) -> dict[str, Json]:
        made = {
            "version": version,
            "dataset": data.identity_of_read(self.roots),
            "context": data.context,
            # The whole model's identity: a tokenizer has none of its own, and ids are checked against the model's embedding.
            "tokenizer": self._model(experiment),
            "prepend_bos": data.prepend_bos,
        }
        # Evaluation rows are what they were, but where they were not led by BOS.
        return made if not data.prepend_bos else {name: value for name, value in made.items() if name != "prepend_bos"}

    def _sae_at(self, site: Site, experiment: Experiment, seed: int) -> SaeStages:
        return self._sae(experiment.section_at(site), site, experiment.dataset.train, experiment, seed)

    def _sae(
        self,
        options: Variant | LoadedSae,
        site: Site,
        data: DatasetAdapter | None,
        experiment: Experiment,
        seed: int,
    ) -> SaeStages:
        if isinstance(options, LoadedSae):
            return SaeStages(options, Stage("loaded_sae", "loaded SAE", options.load.identity(self.roots)), site)
        below = zip(options.base_sections, experiment.dataset.below(options, data), strict=True)
        # A base is a stage of its own, with the key that it has where it is trained for itself: it is trained once for both.
        bases = tuple(self._sae(base, site, texts, experiment, seed) for base, texts in below)
        tokens = self._train_tokens(data, experiment) if options.reads_texts else None
        payload = {
            "model": self._model(experiment),
            "site": site.plain(),
            "sae": {**self._said(options), "version": type(options).version},
            "training": {**self._said(experiment.training), "version": experiment.training.version},
            "token_rule": experiment.token_rule.plain(),
            "seed": seed,
        }
        parents = (*((tokens,) if tokens else ()), *(base.stage for base in bases))
        where = f" at {site}" if len(experiment.sites) > 1 else ""
        stage = Stage("sae", f"{options.variant} SAE{where}, seed {seed}", payload, parents)
        return SaeStages(options, stage, site, data, tokens, bases, experiment.dataset.held_out)

    def _origin(self, cell: Cell) -> OriginStages | None:
        asked = cell.experiment.subject.origin if cell.experiment.subject else None
        if asked is None:
            return None
        # The same stage as of a cell that steers by that subject itself, whatever this cell has besides.
        model = asked.model or cell.experiment.model
        other = {"model": model, "steering": asked.subject, "sae": None, "layer": None, "metrics": ()}
        seed = cell.seed if asked.seed is None else asked.seed
        there = replace(cell, experiment=cell.experiment.model_copy(update=other), seed=seed)
        return OriginStages(there, self.of(there))

    def _subject(self, subject: Subject, cell: Cell, saes: tuple[SaeStages, ...], origin: OriginStages | None) -> Stage:
        payload = {
            "model": self._model(cell.experiment),
            "sites": [sae.site.plain() for sae in saes],
            "section": subject.identity(cell.experiment, self.roots),
            "version": subject.version,
            "seed": cell.seed,
            **_rule(cell.experiment),
        }
        title = f"{subject.made_of(cell.experiment, self.roots)}, seed {cell.seed}"
        above = (*(sae.stage for sae in saes), *([origin.subject] if origin else []))
        return Stage("subject", title, payload, above)

    def _swept(self, cell: Cell, saes: tuple[SaeStages, ...], origin: OriginStages | None) -> SweptStages | None:
        """The stages of what is `auto` under `steering:`."""
        experiment, method = cell.experiment, swept_method(cell.experiment)
        if method is None or method.auto is None:
            return None
        candidates, selection = self._subject(method.candidates(), cell, saes, origin), on_selection(experiment)
        domains = {
            name: DomainStages(self._eval_tokens(f"selection {name}", selection.dataset.eval[name], experiment))
            for name in selection_domains(experiment)
        }
        payload = {
            "model": self._model(experiment),
            "sites": [sae.site.plain() for sae in saes],
            "sweep": method.auto.measures(),
            "identity": method.auto.study.identity(selection, self.roots),
            "method": method.candidates().plain(),
            "tried": {"found": list(method.found), "strengths": list(method.strengths)},
            "cost_on": method.auto.cost_domain(experiment.dataset.eval),
            **_rule(experiment),
        }
        texts = tuple(domain.tokens for domain in domains.values())
        title = _sweep_title(method, experiment, self.roots)
        return SweptStages(candidates, domains, Stage("sweep", title, payload, (candidates, *texts)))

    def _chosen(self, cell: Cell, swept: SweptStages) -> Stage:
        """The candidates at the point that is chosen; how is all that it adds."""
        method = swept_method(cell.experiment)
        assert method is not None
        assert method.auto is not None
        title = f"{' and '.join(method.found)} chosen for {swept.candidates.title}"
        return Stage("subject", title, {"rule": method.auto.rule()}, (swept.candidates, swept.sweep))

    def _study(
        self, study: Study, experiment: Experiment, parents: tuple[Stage, ...], domains: dict[str, DomainStages]
    ) -> Stage:
        subject = experiment.subject
        payload = {
            "model": self._model(experiment),
            "sites": [site.plain() for site in experiment.sites],
            "study": self._said(study),
            # With all its fields: scale and thresholds are not in the subject's own key, but a study measures at them.
            "subject": subject and self._once("plain", (subject,), subject.plain),
            "identity": self._once("study", (study, experiment), lambda: study.identity(experiment, self.roots)),
            "version": study.version,
            **_rule(experiment),
        }
        texts = tuple(domains[name].tokens for name in study.domains(experiment))
        return Stage("study", f"{study.label} study", payload, (*parents, *texts))

    def _train_tokens(self, data: DatasetAdapter | None, experiment: Experiment) -> Stage:
        if data is None:
            raise InvalidInput("training an SAE needs dataset.train")

        def make() -> Stage:
            texts = self._texts(data, experiment, TRAIN_TOKENS_VERSION)
            packing = {"layout": data.packing, "tokens": data.tokens, "repeat": data.repeat}
            held_out = experiment.dataset.held_out
            kept_out = {} if held_out is None else {"held_out": held_out.identity(self.roots)}
            return Stage("tokens", f"{data.tokens:,} training tokens", {**texts, **packing, **kept_out})

        sets = experiment.dataset.eval.values() if experiment.dataset.held_out else ()
        return self._once(("train", experiment.dataset.overlap), (data, experiment.model, *sets), make)

    def _eval_tokens(self, name: str, data: DatasetAdapter, experiment: Experiment) -> Stage:
        def make() -> Stage:
            texts = self._texts(data, experiment, EVAL_TOKENS_VERSION)
            return Stage("tokens", f"{name}: {data.documents} documents", {**texts, "layout": "documents"})

        return self._once(("eval", name), (data, experiment.model), make)

    def _domain(self, name: str, data: DatasetAdapter, experiment: Experiment, sae: SaeStages | None) -> DomainStages:
        tokens = self._eval_tokens(name, data, experiment)
        if sae is None:
            return DomainStages(tokens)
        passes = self._once("passes", (experiment,), lambda: _passes(experiment))
        # The baseline also runs the model with zero and mean in the SAE's place where any measurement is compared with those.
        spliced = any(payload["splice"] for payload in passes.values())
        baseline = self._baseline(f"{name}: the model without an SAE", tokens, sae.site, spliced, experiment.token_rule)
        measurements = {}
        for budget, payload in passes.items():
            title = f"{name}: SAE" + ("" if budget is None else f" at budget {budget}")
            measurements[budget] = Stage("measurement", title, payload, (sae.stage, baseline))
        return DomainStages(tokens, baseline, measurements, self._every_token(name, tokens, experiment, sae))

    def _every_token(self, name: str, tokens: Stage, experiment: Experiment, sae: SaeStages) -> DomainStages | None:
        """What is measured where every token counts. The baseline is that of a spec with `massive: keep`."""
        if (asked := experiment.every_token) is None:
            return None
        title = f"{name}: the model without an SAE, every token"
        baseline = self._baseline(title, tokens, sae.site, asked.cross_entropy, EVERY_TOKEN)
        splice = {"budget": None, "splice": asked.cross_entropy, "version": MEASUREMENT_VERSION}
        measurement = Stage("measurement", f"{name}: SAE, every token", splice, (sae.stage, baseline))
        return DomainStages(tokens, baseline, {None: measurement})

    def _baseline(self, title: str, tokens: Stage, site: Site, splice: bool, rule: TokenRule) -> Stage:
        def make() -> Stage:
            place = {"model": tokens.payload["tokenizer"], "site": site.plain(), "splice": splice}
            payload = {**place, "version": MEASUREMENT_VERSION, "token_rule": rule.plain()}
            return Stage("baseline", title, payload, (tokens,))

        return self._once((title, splice, repr(rule)), (tokens, site), make)


def _passes(experiment: Experiment) -> dict[int | None, Json]:
    """What determines the measurement at each budget, besides the SAE and the texts."""
    made = {}
    for budget in budgets_of(experiment):
        payload = {
            "budget": budget,
            "splice": splices(experiment, budget),
            "version": MEASUREMENT_VERSION,
        }
        brought = {s.name: s.version for s in declared(experiment.shared_metrics, budget)}
        made[budget] = payload | ({"statistics": brought} if brought else {})
    return made


def _sweep_title(method: SteeringMethod, experiment: Experiment, roots: Roots) -> str:
    """What a sweep is going to do, for plans."""
    options, facts = method.auto, experiment.model.facts(roots)
    assert options is not None
    blocks = facts.layers if facts else None
    layers = 1 if "layers" not in method.found else blocks if options.layers == "all" else len(options.layers)
    use = next((name for name in ("dose", "scale") if name in method.found), "strength")
    strengths = plural(len(method.strengths), use)
    where = f"{layers or 'all'} {'layer' if layers == 1 else 'layers'}"
    cost = options.cost_domain(experiment.dataset.eval) or ""
    documents = options.selection(experiment.dataset.eval)[cost].documents
    each = f"{options.study.label} and {documents} documents of {cost}"
    return f"sweep of {where} × {strengths}, each on selection data: {each}"


def _rule(experiment: Experiment) -> dict[str, Json]:
    """Which tokens count where its SAEs read, for what may read there; without an SAE nothing asks."""
    return {"token_rule": experiment.token_rule.plain()} if experiment.sites else {}
