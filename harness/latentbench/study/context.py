"""What a stage of its own gets to work with, and what makes steering vectors and flow maps.

Most of a cell is one shared pass over documents. Studies (harness/latentbench/study/study.py) and subjects (steering vectors
and flow maps) need more: they generate, train or ask a judge. Each is one stage, whose key is the sha256 of everything that
determines its content. A `StageContext` hands it what the key was computed from, so that the same key means the same content
on any machine: what a stage reads besides (a file, a clock, the environment) must be in its `identity`, or not matter.

A plug-in reads this file and study.py; nothing else of the harness has to be known to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.hashing import seed_of
from latentbench.core.progress import Progress
from latentbench.core.spec_model import Json, SpecModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from latentbench.activations.tokens import EvalTokens
    from latentbench.core.paths import Roots
    from latentbench.core.protocols import DatasetAdapter, LanguageModel, ModelAdapter
    from latentbench.core.sites import Site
    from latentbench.core.token_rule import TokenRule
    from latentbench.sae.autoencoder import SparseAutoencoder
    from latentbench.sae.options.base import LoadedSae, Variant
    from latentbench.statistics.units import Units


class DatasetView(Protocol):
    """The texts of an experiment, as its parts may read them."""

    @property
    def train(self) -> DatasetAdapter | None:
        """What its SAEs are trained on; None where the spec names none."""

    @property
    def eval(self) -> Mapping[str, DatasetAdapter]:
        """What is measured, by evaluation domain, in the order of the spec."""


class ExperimentView(Protocol):
    """What the parts of a spec may read of the experiment they stand in.

    The experiment (harness/latentbench/spec/experiment.py) is made of these parts, so it stands above them; what they need
    of it is stated here, so that they need not import it.
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
        """The spec's `steering:`; None without one."""

    @property
    def flow(self) -> Subject | None:
        """The spec's `flow:`; None without one."""

    @property
    def studies(self) -> tuple[Any, ...]:
        """Its metrics that measure on their own (`Study`)."""

    @property
    def concepts(self) -> Any:
        """The spec's `concepts:`; None without one."""

    @property
    def token_rule(self) -> TokenRule:
        """Which tokens count where its SAEs read."""

    def section_at(self, site: Site) -> Variant | LoadedSae:
        """The options of the SAE that reads at `site`, one of `sites`: of one to train, or of one that is loaded."""


@dataclass(frozen=True)
class Longest:
    """The longest text that a model is to write behind a prompt; `validate` holds it against the model's context."""

    tokens: int
    """Generated tokens, and those of the prompt beyond its first, where their number is known."""
    field: str
    """The field of the spec's part that says so, or would: error messages name it."""


@dataclass(frozen=True)
class Content:
    """What a stage leaves behind. The store keeps tensors as safetensors and the rest as JSON."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, on any device, no two over the same memory, which safetensors refuses; they are read back on the CPU."""
    meta: Mapping[str, Json] = field(default_factory=dict)
    """JSON data without NaN and infinity."""


class StoredStates(Protocol):
    """Hidden states of documents from the store (`DocumentStates` in harness/latentbench/reconstruction/documents.py)."""

    def read(self, batch: Any, sites: Collection[Site]) -> dict[Site, Tensor]:
        """For each site the states [B, T, d], in the model's type, of all tokens of a batch of documents or of a part of one."""

    def read_with_logits(self, batch: Any, sites: Collection[Site]) -> tuple[dict[Site, Tensor], Tensor]:
        """The same, and the logits [B, T, vocabulary] of the model as it is."""


@dataclass(frozen=True)
class Origin:
    """What a subject is made from that is the subject of another cell: the same cell with another one, model or seed."""

    subject: Subject
    model: ModelAdapter | None = None
    """Default: the cell's own."""
    seed: int | None = None
    """Default: the cell's own."""


@dataclass(frozen=True)
class SubjectHome:
    """Where a subject was made that this cell's own is made from."""

    content: Content
    subject: Any
    """What it is read as there."""
    model: Callable[[], LanguageModel]
    """The language model there."""


def _no_home() -> SubjectHome:
    raise NotAvailable("the subject of this cell is not made from another one's")


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage. Everything in it is deterministic given `key`.

    What is a function is made or loaded when it is first called, so a stage pays for what it uses. A stage may run on any
    machine, be killed at any moment and be run again, by the same worker or another one: nothing it does outside of
    `scratch` and `cache` may outlive it but the content that it returns.
    """

    experiment: ExperimentView
    """The spec of the cell, resolved and without its seed."""
    key: str
    """The stage's key, in hexadecimal digits; every seed is derived from it."""
    roots: Roots
    """Where files named by the spec may be read: `roots.resolve(path)`."""
    device: torch.device
    """Where the model and the SAEs are, and where tensors are best put."""
    scratch: Path
    """A folder of this stage alone, for checkpoints: it survives a kill, and is deleted when the stage is stored. It need not
    exist yet, and what is in it may have been cut short: write files whole, by a rename (harness/latentbench/store/files.py)."""
    cache: Path
    """A folder that outlives the stage and is shared by all stages and workers of the store, for what was paid for and is
    named by everything that determines it (a judge's transcripts, generated answers). It need not exist yet. What is found
    there must not change what the stage finds, only what it costs."""
    model: Callable[[], LanguageModel]
    """The cell's language model, in evaluation mode on `device`, shared with everything else of the job: leave its weights,
    hooks and configuration as they were. Raises InvalidInput where the texts of the spec are longer than its context, and
    NotAvailable where it is not on this machine."""
    tokenizer: Callable[[], Any]
    """The model's tokenizer without the model; shared as the model is."""
    saes: Callable[[], Mapping[Site, SparseAutoencoder]]
    """Every SAE of the cell by site, in the order of the spec, in evaluation mode on `device`; empty without `sae:`. One is
    read when it is looked up, not when the mapping is made or iterated, and may be read again later, since those that nobody
    holds are let go when memory is short: hold the ones that a loop uses, and no more."""
    subject: Callable[[], Any]
    """For studies: what the spec's `steering:` or `flow:` made, as `Subject.read` gives it, read from the store at every call.
    Raises NotAvailable without one; a subject that is just being made has none."""
    tokens: Callable[[str], EvalTokens]
    """Token rows of an evaluation domain, tokenised on the first call and then from the store. A study may ask for its
    `domains` alone: other texts are in no key of its own. A subject that asks names those texts in its `identity`."""
    shared: Callable[[str, Json, Callable[[], Content]], Content]
    """`shared(kind, payload, make)`: content that several cells need (answers of the model without steering), from the store
    or made now by this worker alone. `kind` and `payload` hold everything that determines it apart from the language model,
    which is added. `make` must not use `seed`, `key` or `scratch`, which are another stage's."""
    progress: Progress
    """`progress(done, total)` steps, or `progress(done, total, "problems")`, for people who watch; it keeps nothing. Best called
    with 0 when the work begins, and as often as there is something new: most calls cost nothing."""
    states: Callable[[str, Sequence[Site]], StoredStates | None] = lambda domain, sites: None
    """The hidden states of an evaluation domain's documents at some sites from the store, where the spec's `cache` keeps them:
    they were computed once for whatever reads there. None: compute them. For studies that say so in `reads_states`."""
    home: Callable[[], SubjectHome] = _no_home
    """For a subject with an `origin`, and studies of it: where that was made. Raises NotAvailable for all others."""

    chosen_by: Callable[[], Content | None] = lambda: None
    """What its subject was chosen by, measured on selection data (`latentbench.steering.sweep`); None where nothing was to be chosen."""
    findings: Callable[[Any], Any] = lambda study: None
    """What another study of the cell found, one that the study at work names in `after`."""

    @property
    def sae(self) -> SparseAutoencoder:
        """The cell's only SAE. Raises InvalidInput when there is none or more than one."""
        found = self.saes()
        if len(found) != 1:
            raise InvalidInput(f"this needs one SAE, the spec has {len(found)}")
        return next(iter(found.values()))

    def units(self, domains: Iterable[str]) -> dict[str, Units]:
        """Which documents of evaluation domains are one unit: `Findings.units` of statistics per document."""
        return {domain: self.tokens(domain).units for domain in domains}

    def seed(self, *purpose: str) -> int:
        """A seed below 2**63 for one purpose, the same wherever the stage is made; other purposes give independent ones.

        Use no other source of randomness, and no global generator without putting its state back. The seed of the cell
        is in the key of a subject. Of a study's it is a part only through what was made with it, SAEs that are trained and
        subjects: without these all seeds of a spec share one study.
        """
        return seed_of(self.key, *purpose)


class Subject(SpecModel):
    """A part of the spec that makes what is studied, when that is more than SAEs: steering vectors, concepts, maps between layers.

    It is made once for all cells with the same `identity`, model, SAEs and seed, and stored. Its fields may also say how the
    content is used (a scale, a scope): those stay out of `identity`, so that sweeping them makes nothing twice. Studies of
    it depend on every field.
    """

    version: ClassVar[int] = 1
    """Raised when the same fields and parents give other content."""
    many_sites: ClassVar[bool] = False
    """Whether it stands on SAEs at several places, one for each of the spec's `layers:`."""

    @property
    def origin(self) -> Origin | None:
        """The subject of another cell that its content is made from, if it is: a stage above its own, by `home` in its context."""
        return None

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What determines the content, besides the model, the cell's SAEs and its seed; by default every field.

        What a field only names (a file, texts, a judge) stands in it with its own `identity`.
        """
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

    def make(self, context: StageContext) -> Content:
        """The content, from scratch or from checkpoints in `context.scratch`.

        It is read back with `read` before it is stored: what cannot be read fails the cell and is made again by the next
        run. Raises a LatentbenchError where people can do something about it.
        """
        raise NotImplementedError

    def settled(self, content: Content) -> Subject:
        """What its content makes of it, where the content says how it is used; by default itself."""
        return self

    def read(self, content: Content, context: StageContext) -> Any:
        """The content as the object that studies work with; called once when it is made, and by every study of it."""
        raise NotImplementedError
