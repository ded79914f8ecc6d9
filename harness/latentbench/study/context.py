"""What work of its own gets to work with: the parts of a cell, made or loaded on first use.

Most of a cell is one shared pass over documents. Studies (harness/latentbench/study/study.py), steering vectors and flow maps need
more: they generate, train or ask a judge. Each is one stage with a key of its own; a `StageContext` hands it everything that the
key was computed from and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.core.spec_model import Json, SpecModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from latentbench.activations.tokens import EvalTokens
    from latentbench.core.paths import Roots
    from latentbench.core.protocols import DatasetAdapter, LanguageModel, ModelAdapter
    from latentbench.core.sites import Site
    from latentbench.sae.autoencoder import SparseAutoencoder
    from latentbench.sae.options.base import LoadedSae, Variant
    from latentbench.statistics.units import Units


class DatasetView(Protocol):
    """The texts of an experiment, as its parts may read them."""

    @property
    def train(self) -> DatasetAdapter | None:
        """What its SAEs are trained on."""

    @property
    def eval(self) -> Mapping[str, DatasetAdapter]:
        """What is measured, by domain."""


class ExperimentView(Protocol):
    """What the parts of a spec may read of the experiment they stand in.

    The experiment (`latentbench.spec.experiment`) is made of these parts; so that neither has to import the other, what
    the parts need of it is stated here.
    """

    @property
    def model(self) -> ModelAdapter:
        """The language model."""

    @property
    def dataset(self) -> DatasetView:
        """The texts."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where its SAEs read; empty without one."""

    @property
    def steering(self) -> Subject | None:
        """What changes the model's behaviour."""

    @property
    def flow(self) -> Subject | None:
        """How latents of SAEs at several places are matched."""

    def section_at(self, site: Site) -> Variant | LoadedSae:
        """The section of the SAE that reads at `site`."""


@dataclass(frozen=True)
class Longest:
    """The longest text that a model is to write behind a prompt of a token or more."""

    tokens: int
    field: str
    """The field of the section that says so, or would."""


@dataclass(frozen=True)
class Content:
    """What a stage leaves behind: tensors as safetensors, the rest as JSON."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage. Everything in it is deterministic given `key`."""

    experiment: ExperimentView
    key: str
    """Of the stage: every seed is derived from it."""
    roots: Roots
    device: torch.device
    scratch: Path
    """A folder for checkpoints that survives a kill; emptied when the stage is stored. It may not exist yet."""
    cache: Path
    """A folder that outlives the stage, for what is keyed by its own content (judges' transcripts). It may not exist yet."""
    model: Callable[[], LanguageModel]
    """The cell's language model, shared with everything else of the job: leave its weights and hooks as they were."""
    tokenizer: Callable[[], Any]
    saes: Callable[[], Mapping[Site, SparseAutoencoder]]
    """Every SAE of the cell by site, in the order of the spec; empty without `sae:`. One is read when it is looked up and
    may be read again later: hold those that a loop uses, and no more."""
    subject: Callable[[], Any]
    """What the spec's `steering:` or `flow:` section made; see `Subject.read`."""
    tokens: Callable[[str], EvalTokens]
    """Token rows of an evaluation domain."""
    shared: Callable[[str, Json, Callable[[], Content]], Content]
    """`shared(kind, payload, make)`: content that several cells need, from the store or made now. `payload` must hold
    everything that determines it apart from the model, which is added."""
    progress: Callable[[int, int], None]
    """Steps done, steps in all."""

    @property
    def sae(self) -> SparseAutoencoder:
        """The cell's only SAE. Raises InvalidInput when there is none or more than one."""
        found = self.saes()
        if len(found) != 1:
            raise InvalidInput(f"this needs one SAE, the spec has {len(found)}")
        return next(iter(found.values()))

    def units(self, domains: Iterable[str]) -> dict[str, Units]:
        """Which documents of evaluation domains are one unit, for findings that have statistics per document."""
        return {domain: self.tokens(domain).units for domain in domains}

    def seed(self, *purpose: str) -> int:
        """A seed for one purpose, the same wherever the stage is made."""
        return seed_of(self.key, *purpose)


class Subject(SpecModel):
    """A section that makes the thing to be studied: a steering vector, a map between layers."""

    version: ClassVar[int] = 1
    """Raised when the same section and parents give other content."""
    many_sites: ClassVar[bool] = False
    """Whether it stands on SAEs at several places, one for each of the spec's `layers:`."""

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What determines the content, besides the model, the cell's SAEs and its seed; by default every field."""
        return self.plain()

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        """What is wrong with asking for it in this experiment, found without torch; shown by `validate`."""
        return ()

    def longest_answer(self, roots: Roots) -> Longest | None:
        """The longest text that the model writes for it; None where it writes none, or that is not known here."""
        return None

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        """How plans call it, e.g. `rl vectors on 4 layers`."""
        return type(self).__name__

    def make(self, lab: StageContext) -> Content:
        """The content, from scratch or from checkpoints in `lab.scratch`."""
        raise NotImplementedError

    def read(self, content: Content, lab: StageContext) -> Any:
        """The content as the object that studies work with."""
        raise NotImplementedError
