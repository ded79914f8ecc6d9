"""A cell's stages: what has to exist before its row can be written, each named by what determines its content.

    train tokens ──▶ sae ─────────────┐      (an SAE built on a base SAE has that as a parent too)
    eval tokens ───▶ baseline ────────┴──▶ measurement      (one per evaluation domain and budget)

A stage's key is the sha256 of its payload and of its parents' keys (a Merkle tree), so the same key means the same
content on any machine. Device, workers, paths, labels, resources and batch sizes of evaluation are in no key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from adapters.protocols import DatasetAdapter, Roots
from harness.canonical import digest
from harness.errors import InvalidInput
from harness.sae.options import Variant
from harness.sae.options.loaded import LoadedSae
from harness.section import Json
from harness.spec.cells import Cell
from harness.spec.experiment import Experiment

Kind = Literal["tokens", "sae", "loaded_sae", "baseline", "measurement"]

TOKENS_VERSION = 1
MEASUREMENT_VERSION = 1  # kept here as a number: harness.measure imports torch, and plans must not
"""Raised when the same documents and weights give other stored statistics."""


@dataclass(frozen=True)
class Stage:
    """One piece of content to be made or re-used."""

    kind: Kind
    title: str
    """For people; not part of the identity."""
    payload: Json
    parents: tuple[Stage, ...] = ()

    @cached_property
    def key(self) -> str:
        """sha256 of everything that determines the content."""
        return digest(self.kind, self.made_from)

    @property
    def made_from(self) -> Json:
        """What the key is computed from."""
        return {"payload": self.payload, "parents": [parent.key for parent in self.parents]}

    @property
    def stored(self) -> bool:
        """Whether the content is kept in the store (a loaded SAE stays where it is)."""
        return self.kind != "loaded_sae"


@dataclass(frozen=True)
class DomainStages:
    """What is measured on one evaluation domain."""

    tokens: Stage
    baseline: Stage
    measurements: dict[int | None, Stage]
    """By budget; None is the SAE as it was trained."""


@dataclass(frozen=True)
class SaeStages:
    """How an SAE comes to be: trained on texts, perhaps on top of other SAEs, or loaded."""

    section: Variant | LoadedSae
    stage: Stage
    data: DatasetAdapter | None = None
    """What it is trained on; None when it is loaded."""
    tokens: Stage | None = None
    """The training tokens of `data`."""
    bases: tuple[SaeStages, ...] = ()

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
class CellStages:
    """All stages of one cell."""

    sae: SaeStages
    domains: dict[str, DomainStages]

    def all(self) -> list[Stage]:
        """In an order in which they can be made, each once."""
        found = self.sae.all()
        for domain in self.domains.values():
            found += [domain.tokens, domain.baseline, *domain.measurements.values()]
        return list({stage.key: stage for stage in found}.values())


def stages_of(cell: Cell, roots: Roots) -> CellStages:
    """The stages of a cell. Raises InvalidInput when what it names cannot be identified."""
    experiment = cell.experiment
    model = experiment.model.identity(roots)
    sae = _sae(experiment.sae, experiment.dataset.train, experiment, cell.seed, model, roots)
    domains = {
        name: _domain(name, data, experiment, model, sae.stage, roots) for name, data in experiment.dataset.eval.items()
    }
    return CellStages(sae, domains)


def cell_key(cell: Cell, stages: CellStages) -> str:
    """What determines a cell's numbers: its stages and the definitions of its metrics."""
    metrics = [{**metric.plain(), "version": metric.version} for metric in cell.experiment.metrics]
    return digest("cell", {"stages": stage_keys(stages), "metrics": metrics})


def stage_keys(stages: CellStages) -> dict[str, str]:
    """Stage name to key, as written into the record."""
    named = {"sae": stages.sae.stage.key}
    if stages.sae.tokens:
        named["train_tokens"] = stages.sae.tokens.key
    for number, base in enumerate(stages.sae.bases):
        named[f"base{number or ''}"] = base.stage.key
    for name, domain in stages.domains.items():
        named[f"{name}/tokens"], named[f"{name}/baseline"] = domain.tokens.key, domain.baseline.key
        for budget, stage in domain.measurements.items():
            named[f"{name}/measurement" + ("" if budget is None else f"@{budget}")] = stage.key
    return named


def comparability(cell: Cell, domain: DomainStages) -> dict[str, Json]:
    """The facts that must agree for two rows to be ranked together on a domain."""
    return {
        "model": domain.baseline.payload["model"],
        "layer": str(cell.experiment.layer),
        "documents": domain.tokens.payload["dataset"],
        "context": domain.tokens.payload["context"],
        "tokens": domain.tokens.key[:16],
        "measurement_version": MEASUREMENT_VERSION,
    }


def budgets_of(experiment: Experiment) -> tuple[int | None, ...]:
    """Every budget at which some metric wants the SAE measured, as trained first."""
    asked = {budget for metric in experiment.metrics for budget in metric.measured_at()}
    return (None, *sorted(budget for budget in asked if budget is not None))


def splices(experiment: Experiment, budget: int | None) -> bool:
    """Whether some metric needs the reconstruction spliced into the model at this budget."""
    return any(metric.splices and budget in metric.measured_at() for metric in experiment.metrics)


def _texts(data: DatasetAdapter, model: Json, roots: Roots) -> dict[str, Json]:
    return {
        "version": TOKENS_VERSION,
        "dataset": {**_identity(data, roots), "skip": data.skip, "documents": data.documents},
        "context": data.context,
        "tokenizer": model,
    }


def _identity(data: DatasetAdapter, roots: Roots) -> dict[str, Json]:
    identity = data.identity(roots)
    return {"adapter": data.adapter, **(identity if isinstance(identity, dict) else {"identity": identity})}


def _sae(
    section: Variant | LoadedSae,
    data: DatasetAdapter | None,
    experiment: Experiment,
    seed: int,
    model: Json,
    roots: Roots,
) -> SaeStages:
    if isinstance(section, LoadedSae):
        return SaeStages(section, Stage("loaded_sae", "loaded SAE", section.load.identity(roots)))
    below = experiment.dataset.base or data
    bases = tuple(_sae(base, below, experiment, seed, model, roots) for base in section.base_sections)
    tokens = _train_tokens(data, model, roots) if section.reads_texts else None
    payload = {
        "model": model,
        "site": experiment.layer.plain(),
        "sae": {**section.plain(), "version": type(section).version},
        "training": {**experiment.training.identity(), "version": experiment.training.version},
        "seed": seed,
    }
    parents = (*((tokens,) if tokens else ()), *(base.stage for base in bases))
    stage = Stage("sae", f"{section.variant} SAE, seed {seed}", payload, parents)
    return SaeStages(section, stage, data, tokens, bases)


def _train_tokens(data: DatasetAdapter | None, model: Json, roots: Roots) -> Stage:
    if data is None:
        raise InvalidInput("training an SAE needs dataset.train")
    packing = {"layout": "packed", "tokens": data.tokens, "repeat": data.repeat}
    return Stage("tokens", f"{data.tokens:,} training tokens", {**_texts(data, model, roots), **packing})


def _domain(
    name: str, data: DatasetAdapter, experiment: Experiment, model: Json, sae: Stage, roots: Roots
) -> DomainStages:
    tokens = Stage(
        "tokens", f"{name}: {data.documents} documents", {**_texts(data, model, roots), "layout": "documents"}
    )
    budgets = budgets_of(experiment)
    spliced = any(splices(experiment, budget) for budget in budgets)
    place = {"model": model, "site": experiment.layer.plain(), "splice": spliced, "version": MEASUREMENT_VERSION}
    baseline = Stage("baseline", f"{name}: the model without an SAE", place, (tokens,))
    measurements = {}
    for budget in budgets:
        payload = {"budget": budget, "splice": splices(experiment, budget), "version": MEASUREMENT_VERSION}
        title = f"{name}: SAE" + ("" if budget is None else f" at budget {budget}")
        measurements[budget] = Stage("measurement", title, payload, (sae, baseline))
    return DomainStages(tokens, baseline, measurements)
