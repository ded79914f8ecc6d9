"""What every concept of a cell got, to be switched on at a dose, and to be looked for in hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.concepts.options import ADAPTERS, VECTORS, Concepts
from latentbench.core.errors import CellFailed
from latentbench.core.spec_model import Json
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Untouched
from latentbench.interventions.lora import LoraAdapter
from latentbench.interventions.reft import Reft, SubspaceEdit
from latentbench.interventions.vectors import SteeringVectors, model_tag
from latentbench.steering.build import INVERSE_LENGTHS, at_dose, by_layer, parted, vectors_in
from latentbench.study.context import Content

if TYPE_CHECKING:
    from latentbench.study.context import StageContext

DOSE, LATENT = "dose", "latent"
"""Names in the `meta` of a concept's content: the dose that an adapter has by itself, and the latent that was chosen."""


def adapter_of(options: Concepts, weights: Mapping[str, Tensor], scale: float) -> Intervention:
    """An adapter at a factor of what it was trained to be."""
    if options.way == "lora":
        return LoraAdapter(dict(weights), (options.layer,), options.adapter.rank, scale)
    edit = SubspaceEdit(weights["R"], weights["W"], weights["b"])
    return Reft(options.layer, edit, scale)


@dataclass(frozen=True)
class ConceptKit:
    """What was made, by concept in the order of the spec."""

    options: Concepts
    parts: Mapping[str, Content]
    tag: Json
    """What vectors are bound to, see `model_tag`."""

    @staticmethod
    def of(options: Concepts, content: Content, context: StageContext) -> ConceptKit:
        """From what `make_concepts` made. Raises CellFailed for other content."""
        parts = parted(content)
        if len(parts) != len(options.chosen):
            raise CellFailed(f"concepts: content for {len(parts)} concepts, not {len(options.chosen)}")
        tag = model_tag(context.experiment.model.identity(context.roots))
        return ConceptKit(options, dict(zip(options.chosen, parts, strict=True)), tag)

    def settings(self, name: str, doses: tuple[float, ...]) -> tuple[float | None, ...]:
        """The doses to choose among, ascending; for an adapter the one that it was trained to too, for what has none nothing."""
        if not self.options.dosed:
            return (None,)
        own = [float(self.parts[name].meta[DOSE])] if self.options.way in ADAPTERS else []
        return tuple(sorted({*doses, *own}))

    def at(self, name: str, dose: float | None) -> Intervention:
        """What writes about a concept at a dose; the model as it is where there is none."""
        part = self.parts[name]
        if dose is None:
            return Untouched()
        if self.options.way in ADAPTERS:
            return adapter_of(self.options, part.tensors, dose / float(part.meta[DOSE]))
        return VectorInjection(at_dose(vectors_in(part, self.tag), dose, part))

    def like(self, name: str, direction: Tensor, dose: float) -> Intervention:
        """Another direction [d] of the same dose, as a control."""
        inverse = float(self.parts[name].meta[INVERSE_LENGTHS][str(self.options.layer)])
        length = dose / inverse / float(torch.linalg.vector_norm(direction))
        return VectorInjection(SteeringVectors({self.options.layer: direction * length}, self.tag))

    def leading(self, name: str) -> str:
        """What stands in front of every text about a concept."""
        return str(self.parts[name].meta.get("leading", ""))

    def direction(self, name: str) -> Tensor | None:
        """[d] what hidden states are multiplied by to find a concept; None where nothing is added or a latent does that."""
        if self.options.way not in VECTORS or self.options.way == "latent":
            return None
        (direction,) = by_layer(self.parts[name]).values()
        return direction

    def latent(self, name: str) -> int | None:
        """The latent whose activation finds a concept; None for other ways."""
        found = self.parts[name].meta.get(LATENT)
        return None if found is None else int(found)


def kit_of(options: Concepts, content: Content, context: StageContext) -> ConceptKit:
    """`ConceptKit.of`, to be named by what imports no torch."""
    return ConceptKit.of(options, content, context)
