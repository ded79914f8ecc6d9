"""The finished cells that a reader means, their experiments, and what is known of their latents.

The store comes first, then the model, if it is on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from latentbench.activations.texts import evaluation_rows
from latentbench.activations.tokens import EvalTokens
from latentbench.activations.vocabulary import embedding_rows
from latentbench.autointerp.scores import AutointerpDetails
from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.latents.encoding import encoded
from latentbench.latents.firing import TOP_TOKENS, Latents
from latentbench.latents.survey import Survey, survey
from latentbench.leaderboard.load import load
from latentbench.leaderboard.select import select
from latentbench.records.record import Record
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.spec.experiment import Experiment
from latentbench.spec.project import Project
from latentbench.store.store import Store
from latentbench.study.storage import from_content, stored_content
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel
    from latentbench.execute.sae_loading import StoredSae


def cells_of(results: Path, *wanted: str) -> tuple[Record, ...]:
    """The cells meant, one per seed. Raises InvalidInput for something unknown."""
    loaded = load(results)
    return tuple(cell.record for name in wanted for cell in select(loaded, name).cells)


def cell_of(results: Path, wanted: str, what: str = "cells") -> Record:
    """The one cell meant. Raises InvalidInput when there are several seeds of `what`."""
    side = select(load(results), wanted)
    if len(side.cells) > 1:
        seeds = ", ".join(str(cell.record.seed) for cell in side.cells)
        raise InvalidInput(f"{wanted} means several {what}; say which seed, e.g. {side.name}[0] (seeds: {seeds})")
    return side.cells[0].record


def records_of(results: Path, wanted: str) -> tuple[Record, ...]:
    """The cells meant, each with one SAE. Raises RefusedFile where no single SAE is known."""
    return tuple(_with_sae(record, wanted) for record in cells_of(results, wanted))


def record_of(results: Path, wanted: str) -> Record:
    """The one cell meant, which has one SAE. Raises InvalidInput when there are several seeds."""
    return _with_sae(cell_of(results, wanted, "SAEs"), wanted)


def experiment_of(record: Record) -> Experiment:
    """What was run. Raises RefusedFile when this version cannot read it."""
    try:
        return Experiment.model_validate_json(json.dumps(record.resolved), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedFile(f"this version cannot read the record's experiment: {where}: {first['msg']}") from None


def stored_sae(record: Record, experiment: Experiment, project: Project) -> StoredSae:
    """The cell's SAE with its options and bases. Raises NotAvailable or RefusedFile."""
    from latentbench.execute.sae_loading import load_stored

    section = experiment.section_at(experiment.sites[0])
    return load_stored(Store(project.store), record.keys["sae"], section, project.roots)


def sae_of(record: Record, experiment: Experiment, project: Project) -> SparseAutoencoder:
    """The cell's SAE from the store, or from its source. Raises NotAvailable or RefusedFile."""
    return stored_sae(record, experiment, project).sae


def _with_sae(record: Record, wanted: str) -> Record:
    if "sae" not in record.keys:
        raise RefusedFile(f"the record of {wanted} does not name one SAE that was measured")
    return record


Say = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """What is known of one SAE's latents."""

    record: Record
    experiment: Experiment
    sae: SparseAutoencoder
    tokenizer: Any
    model: LanguageModel | None
    """None where it is not on this machine."""
    surveys: dict[str, Survey]
    """By evaluation domain; empty where they could not be made."""
    autointerp: AutointerpDetails | None
    notes: tuple[str, ...]
    """What a reader must know is missing, and why."""


def sources_of(record: Record, project: Project, say: Say) -> Sources:
    """Reads what is stored and measures what is not. `say` is told about work that takes time.

    Raises NotAvailable when the SAE or the tokenizer is not here, or nothing is known about any latent.
    """
    experiment = experiment_of(record)
    sae = sae_of(record, experiment, project)
    store, notes = Store(project.store), []
    autointerp = autointerp_of(store, record)
    surveys = _stored_surveys(store, record)
    model: LanguageModel | None = None
    try:
        model = experiment.model.load(project.roots, torch.device("cpu"))
    except NotAvailable as error:
        notes.append(f"Without tokens promoted by each latent: {error}.")
    if not surveys and model is not None:
        surveys = _measured_surveys(store, record, experiment, project, sae, model, say)
    if not surveys and autointerp is None:
        raise NotAvailable("nothing is stored about these latents, and the model to look at them is not here")
    if not surveys:
        notes.append("Only latents that were sampled for autointerp are shown.")
    tokenizer = model.tokenizer if model else experiment.model.load_tokenizer(project.roots)
    return Sources(record, experiment, sae, tokenizer, model, surveys, autointerp, tuple(notes))


def stored_study(store: Store, record: Record, name: str) -> Findings | None:
    """What a study of the record's cell found, or None when it is not in the store."""
    key = record.keys.get(f"study/{name}")
    content = stored_content(store, "study", key) if key else None
    return from_content(content) if content else None


def autointerp_of(store: Store, record: Record) -> AutointerpDetails | None:
    """The record's stored autointerp study, or None. Raises RefusedFile when this version cannot read it."""
    found = stored_study(store, record, "autointerp")
    if found is None:
        return None
    try:
        return AutointerpDetails.model_validate_json(json.dumps(found.details), strict=True)
    except ValidationError as error:
        raise RefusedFile(f"the stored autointerp study cannot be read by this version: {error}") from None


def _stored_surveys(store: Store, record: Record) -> dict[str, Survey]:
    found = stored_study(store, record, "latents")
    if found is None:
        return {}
    names = dict.fromkeys(name.partition("/")[0] for name in found.tensors)
    ordered = [name for name in found.details.get("domains", {}) if name in names]
    return {
        name: Survey.of({k.removeprefix(f"{name}/"): t for k, t in found.tensors.items() if k.startswith(f"{name}/")})
        for name in ordered
    }


def _measured_surveys(
    store: Store,
    record: Record,
    experiment: Experiment,
    project: Project,
    sae: SparseAutoencoder,
    model: LanguageModel,
    say: Say,
) -> dict[str, Survey]:
    """The same pass as the `latents` study's with its default options."""
    options, site = Latents(), experiment.sites[0]
    found = {}
    for name in experiment.dataset.eval:
        say(f"no `latents` study is stored: reading the documents of {name}")
        tokens = _tokens(store, record, experiment, project, model, name)
        parts = encoded(model, sae, site, tokens, rule=experiment.token_rule)
        found[name] = survey(parts, model, sae.width, options.examples, options.window, TOP_TOKENS)
    return found


def _tokens(
    store: Store, record: Record, experiment: Experiment, project: Project, model: LanguageModel, name: str
) -> EvalTokens:
    key = record.keys.get(f"{name}/tokens")
    if key and (content := stored_content(store, "tokens", key)):
        return EvalTokens.from_tensors(dict(content.tensors), dict(content.meta))
    return evaluation_rows(experiment.dataset.eval[name], project.roots, model.tokenizer, embedding_rows(model.model))
