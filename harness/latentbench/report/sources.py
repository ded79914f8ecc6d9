"""Everything a page about latents is made from: the store first, then the model, if it is on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.activations.vocabulary import embedding_rows
from latentbench.errors import NotAvailable, RefusedFile
from latentbench.execute.findings import from_content
from latentbench.execute.stages import stored_content
from latentbench.metrics.autointerp.details import AutointerpDetails
from latentbench.metrics.latents.latents import TOP_TOKENS, Latents
from latentbench.metrics.latents.survey import Survey, survey
from latentbench.metrics.study import Findings
from latentbench.project import Project
from latentbench.record import Record
from latentbench.report.records import experiment_of, sae_of
from latentbench.sae.base import SparseAutoencoder
from latentbench.spec.experiment import Experiment
from latentbench.store.store import Store

if TYPE_CHECKING:
    from latentbench_adapters.protocols import LanguageModel

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
        model = _load(experiment, project)
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


def _load(experiment: Experiment, project: Project) -> LanguageModel:
    import torch

    return experiment.model.load(project.roots, torch.device("cpu"))


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
        found[name] = survey(model, sae, site, tokens, options.examples, options.window, TOP_TOKENS)
    return found


def _tokens(
    store: Store, record: Record, experiment: Experiment, project: Project, model: LanguageModel, name: str
) -> EvalTokens:
    key = record.keys.get(f"{name}/tokens")
    if key and (content := stored_content(store, "tokens", key)):
        return EvalTokens.from_tensors(dict(content.tensors), dict(content.meta))
    data = experiment.dataset.eval[name]
    return evaluation_tokens(
        data.texts(project.roots),
        model.tokenizer,
        context=data.context,
        documents=data.documents,
        skip=data.skip,
        known_ids=embedding_rows(model.model),
    )
