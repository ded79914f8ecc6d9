"""The section `concepts:` of a spec: concepts by labelled texts, and one way to write about them, as AxBench compares (arXiv 2501.17148).

One cell is one way for all of its concepts, so that a row says what the way does on average and how far that depends on the
concept. The texts of a set are divided by their own words into three parts that share none: what a way learns from, what the
classifier is trained on that judges what is written, and what both are tested on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.core.plugins import Choice, implementation
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json, SpecModel
from latentbench.study.context import Content, StageContext, Subject

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

Way = Literal["mean", "pca", "probe", "latent", "random", "lora", "reft", "prompt", "none"]
Name = Annotated[str, Field(pattern=r"^[\w][\w .-]*$", max_length=60)]
VECTORS: frozenset[Way] = frozenset({"mean", "pca", "probe", "latent", "random"})
"""Ways that add one vector at every token."""
ADAPTERS: frozenset[Way] = frozenset({"lora", "reft"})
"""Ways whose change depends on the token."""
SLOT = "{concept}"
"""Stands for what a concept is about in a prompt."""


class Concept(SpecModel):
    """The texts of a labelled set that have one label, against all others of that set."""

    set: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the set: of the file without its endings, or the hub's id."""
    label: Annotated[str, Field(min_length=1, max_length=200)]
    """Label of the texts that have the concept."""
    about: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """What prompts and judges call it; default the concept's name."""


class AdapterTraining(SpecModel):
    """How `lora` and `reft` are trained: to predict the texts that have the concept, by AdamW at a constant learning rate."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 1
    """Rank of the adapter."""
    steps: PositiveInt = 40
    """Optimiser steps."""
    batch: PositiveInt = 8
    """Texts per step."""
    tokens: Annotated[int, Field(ge=2)] = 48
    """Tokens read of each text."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate."""


class Prompting(SpecModel):
    """What `prompt` puts in front of a text."""

    text: Annotated[str, Field(max_length=5000)] = "The following text is about {concept}.\n\n"
    """An instruction, with `{concept}` for what the concept is about."""
    examples: Annotated[int, Field(ge=0, le=100)] = 0
    """So many texts that have the concept, one below the other in front of the instruction."""


class Concepts(Subject):
    """Concepts and one way to make a model write about them; every concept gets a vector, adapter or prompt of its own.

    =========  ====================================================================================================
    `way`      what is made from the texts with the concept (+) and without it (−), a text being the mean of its ordinary tokens
    =========  ====================================================================================================
    `mean`     mean of + minus mean of −
    `pca`      first right singular vector of paired differences + − − (not centred), in the direction of their mean
    `probe`    the direction of a logistic regression of + against −
    `latent`   decoder row of the SAE's latent whose largest activation in a text tells + from − best, by AUROC
    `random`   a direction uniform on the sphere, as a control
    `lora`     a low-rank adapter on the block's down-projection, trained on +
    `reft`     h ← h + Rᵀ(W h + b − R h), R orthonormal, trained on + (LoReFT, arXiv 2404.03592)
    `prompt`   an instruction, examples or both in front of the text
    `none`     nothing: the model as it is
    =========  ====================================================================================================

    Changes are made at all tokens behind the block `layer`. How strongly is a dose, the mean of ‖Δ‖/‖h‖, which the metric
    chooses for each concept.
    """

    implementation: ClassVar[str] = "latentbench.concepts.making:make_concepts"
    kit: ClassVar[str] = "latentbench.concepts.kit:kit_of"
    """`module:function` that reads what was made; named and not imported, as that stands on torch."""

    way: Way
    """How a concept is written about."""
    layer: Annotated[int, Field(ge=0)]
    """Decoder block behind which hidden states are read and changed; with `way: latent` that of the SAE."""
    sets: Annotated[DatasetAdapter, Choice("datasets", "adapter")]
    """Texts with a `label`: every file is a set."""
    chosen: Annotated[dict[Name, Concept], Field(min_length=1, max_length=1000)]
    """The concepts by name. Intervals over concepts need ten."""
    texts: Annotated[int, Field(ge=8)] = 64
    """Texts with the concept, and as many without it, that a way learns from: other ones for every seed."""
    most: Annotated[int, Field(ge=64)] = 2500
    """Different texts read of each set at most, from its beginning."""
    adapter: AdapterTraining = AdapterTraining()
    """How `lora` and `reft` are trained."""
    prompting: Prompting = Prompting()
    """What `prompt` says."""

    @model_validator(mode="after")
    def _something_said(self) -> Any:
        if not self.prompting.text and not self.prompting.examples:
            raise ValueError("prompting: state a `text`, `examples`, or both")
        return self

    @property
    def dosed(self) -> bool:
        """Whether it has a strength."""
        return self.way in VECTORS | ADAPTERS

    def about(self, name: str) -> str:
        """What prompts and judges call a concept."""
        return self.chosen[name].about or name

    def shared_identity(self, roots: Roots) -> dict[str, Json]:
        """What two ways must have alike for their rows to be compared."""
        chosen = {name: {"set": one.set, "label": one.label} for name, one in self.chosen.items()}
        texts = {"context": self.sets.context, "most": self.most}
        return {"sets": self.sets.identity_of_read(roots), "chosen": chosen, **texts}

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        made: dict[str, Json] = {"way": self.way, "layer": self.layer, "texts": self.texts}
        made |= self.shared_identity(roots) | {"token_rule": experiment.token_rule.plain()}
        if self.way in ADAPTERS:
            made["adapter"] = self.adapter.plain()
        if self.way == "prompt":
            made |= {"prompting": self.prompting.plain(), "about": {name: self.about(name) for name in self.chosen}}
        first = next(iter(experiment.dataset.eval.values()), None)
        if self.dosed and first is not None:  # which dose is use, but what it is told by is content
            made["dosed_on"] = [first.chosen_identity(roots), first.skip, first.documents]
        return made

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        found = self.sets.labelled(roots)
        unknown = {one.set for one in self.chosen.values()} - found.keys()
        known = ", ".join(list(found)[:5]) + (", …" if len(found) > 5 else "")
        wrong = [f"`chosen`: there is no labelled set {name!r} (known: {known})" for name in sorted(unknown)]
        return (*wrong, *self._misplaced(experiment, roots))

    def _misplaced(self, experiment: ExperimentView, roots: Roots) -> Iterator[str]:
        """What of the experiment around it does not fit."""
        facts = experiment.model.facts(roots)
        if facts and self.layer >= facts.layers:
            yield f"layer: the model has {facts.layers} blocks, numbered 0 to {facts.layers - 1}"
        if facts and facts.context and self.sets.context > facts.context:
            yield f"sets.context: the model has positions for {facts.context} tokens, not {self.sets.context}"
        if self.dosed and not experiment.dataset.eval:
            yield "a dose is told by evaluation texts, and there is no `dataset.eval`; add one"
        places = [(site.index, site.point) for site in experiment.sites]
        if self.way == "latent" and places != [(self.layer, "resid_post")]:
            yield f"way: latent needs an `sae:` that reads the output of block {self.layer}; state it and `layer: {self.layer}`"
        if self.way != "latent" and places:
            yield f"way: {self.way} reads no SAE; leave `sae:` out"

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"{len(self.chosen)} concepts by {self.way}"

    def make(self, context: StageContext) -> Content:
        """What every concept gets. Raises CellFailed for a concept with too few texts."""
        made: Content = implementation(self.implementation)(self, context)
        return made

    def read(self, content: Content, context: StageContext) -> Any:
        """What every concept got, to be switched on and to be looked for: a `ConceptKit` (kit.py)."""
        return implementation(self.kit)(self, content, context)
