"""What the stages of a job read: language models, tokens and contents of earlier stages.

What is in the store is read, what is missing is computed and stored. A language model is loaded once at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from latentbench.activations.texts import evaluation_rows, training_rows
from latentbench.activations.tokens import EvalTokens, TrainTokens
from latentbench.activations.vocabulary import embedding_rows, positions
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter, LanguageModel, ModelAdapter
from latentbench.core.spec_model import Json
from latentbench.core.stage import Stage
from latentbench.plan.stages import SaeStages
from latentbench.reconstruction.statistics import Baseline, Measurement
from latentbench.spec.fit import beyond
from latentbench.store.store import Store
from latentbench.study.storage import read_content, write_content

T = TypeVar("T")


def stored(store: Store, stage: Stage, read: Callable[[dict[str, Tensor], dict[str, Json]], T]) -> T | None:
    """The stage's content from the store as `read` takes it, or None when it is missing or was damaged.

    Raises DamagedArtifact for files that are what was once written and yet cannot be read as content.
    """
    artifact = store.get(*stage.ref)
    return None if artifact is None else read(*read_content(artifact.folder))


def keep(store: Store, stage: Stage, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> None:
    """Stores a stage's content."""
    with store.writing(stage.kind, stage.key, stage.made_from) as folder:
        write_content(folder, tensors, meta)


def make_train_tokens(store: Store, sae: SaeStages, models: ModelCache, model: ModelAdapter) -> TrainTokens:
    """Training rows of an SAE that reads texts, for one of `models`, from the store or made by one worker alone."""
    stage, data = sae.tokens, sae.data
    assert stage is not None  # only what reads texts is asked for them
    assert data is not None

    def make() -> TrainTokens:
        tokenizer, known_ids = models.tokenizer(model), models.known_ids(model)
        made = training_rows(data, models.roots, tokenizer, known_ids, held_out=sae.held_out)
        keep(store, stage, *made.to_tensors())
        return made

    return store.once(*stage.ref, lambda: stored(store, stage, TrainTokens.from_tensors), make)


def make_eval_tokens(
    store: Store, stage: Stage, data: DatasetAdapter, models: ModelCache, model: ModelAdapter
) -> EvalTokens:
    """One row per evaluation document of a dataset, for one of `models`, from the store or made by one worker alone."""

    def make() -> EvalTokens:
        made = evaluation_rows(data, models.roots, models.tokenizer(model), models.known_ids(model))
        keep(store, stage, *made.to_tensors())
        return made

    return store.once(*stage.ref, lambda: stored(store, stage, EvalTokens.from_tensors), make)


def stored_baseline(store: Store, stage: Stage) -> Baseline | None:
    """A baseline that is in the store."""
    return stored(store, stage, Baseline.from_tensors)


def stored_measurement(store: Store, stage: Stage) -> Measurement | None:
    """A measurement that is in the store."""
    return stored(store, stage, lambda tensors, meta: Measurement.from_tensors(stage.key, tensors, meta))


class ModelCache:
    """The language models of a job, each loaded at most once and only when something must be computed."""

    def __init__(self, roots: Roots, device: str) -> None:
        self.roots, self.device = roots, torch.device(device)
        self._loaded: dict[ModelAdapter, LanguageModel] = {}
        self._tokenizers: dict[ModelAdapter, Any] = {}

    def model(self, adapter: ModelAdapter, context: int = 0) -> LanguageModel:
        """The model, loaded. Raises InvalidInput when it has no positions for texts of `context` tokens.

        `validate` says so first, unless the model's configuration was not there or leaves it to transformers' default.
        """
        if adapter not in self._loaded:  # adapters are compared by their fields, so cells that say the same share one
            self._loaded[adapter] = adapter.load(self.roots, self.device)
        room = positions(self._loaded[adapter].model)
        if room is not None and context > room:
            raise InvalidInput(beyond(context, room))
        return self._loaded[adapter]

    def tokenizer(self, adapter: ModelAdapter) -> Any:
        """The tokenizer alone, for work that may never need the model."""
        if adapter not in self._tokenizers:
            self._tokenizers[adapter] = adapter.load_tokenizer(self.roots)
        return self._tokenizers[adapter]

    def known_ids(self, adapter: ModelAdapter) -> int:
        """How many token ids the model knows; it is loaded only where its configuration does not say."""
        facts = adapter.facts(self.roots)
        stated = facts.vocabulary if facts else None
        return embedding_rows(self.model(adapter).model) if stated is None else stated
