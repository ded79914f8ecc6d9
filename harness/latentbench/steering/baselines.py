"""Steering that is not computed from what the model does: none, a prefix, random vectors, vectors from files, and stacks.

Files of steering vectors that a spec names lie inside the project, are of the cell's model, and are never unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.spec_model import Json
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Content, Longest, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.interventions.intervention import Intervention
    from latentbench.interventions.vectors import SteeringVectors
    from latentbench.study.context import ExperimentView


def vector_file(path: str, roots: Roots) -> Path:
    """The file meant by `path`. Raises InvalidInput when it leaves the project, NotAvailable when it is not there."""
    from latentbench.core.errors import InvalidInput, NotAvailable

    try:
        found = roots.resolve(path)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if not found.is_file():
        raise NotAvailable(f"there is no file {path!r} (paths are relative to the project)")
    return found


def vectors_from(path: str, lab: StageContext, other_model: bool = False) -> SteeringVectors:
    """Its vectors. Raises RefusedFile for a malformed or unsafe file and, unless `other_model`, for another model's;
    InvalidInput where they do not fit the lab's model."""
    from latentbench.interventions.vectors import model_tag, read_vectors

    vectors = read_vectors(vector_file(path, lab.roots))
    if not other_model:
        vectors.made_for(model_tag(lab.experiment.model.identity(lab.roots)), path)
    vectors.check(lab.model().model)
    return vectors


Positive = Annotated[float, Field(gt=0)]


class NoSteering(SteeringMethod):
    """The model as it is, as a row of its own."""

    method: Literal["none"] = "none"

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"method": self.method}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return "no steering"

    def make(self, lab: StageContext) -> Content:
        return Content()

    def read(self, content: Content, lab: StageContext) -> Intervention:
        from latentbench.interventions.intervention import Untouched

        return Untouched()


class PrefixMethod(SteeringMethod):
    """A text appended to every prompt instead of a vector."""

    method: Literal["prefix"] = "prefix"
    text: Annotated[str, Field(min_length=1, max_length=10_000)]
    """What is appended, white space included, e.g. ` To find out`."""

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"method": self.method, "text": self.text}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"prefix {self.text!r}"

    def make(self, lab: StageContext) -> Content:
        return Content()

    def read(self, content: Content, lab: StageContext) -> Intervention:
        from latentbench.interventions.intervention import Untouched

        return Untouched(self.text)


class RandomMethod(SteeringMethod):
    """Control: vectors of random direction, one per layer, with the norm of what they are compared with."""

    method: Literal["random"] = "random"
    norm: Positive | tuple[Positive, ...] | None = None
    """Norm of every vector, or one number per layer in ascending order (those of a trained vector, for a fair control)."""
    like: Positive | None = None
    """Norm as a fraction of the mean norm of the layer's residual stream."""

    measures_norms: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_norm(self) -> Any:
        if (self.norm is None) == (self.like is None):
            raise ValueError("state either norm or like")
        return self

    def make(self, lab: StageContext) -> Content:
        """Directions uniform on the sphere."""
        import torch

        from latentbench.steering.build import content_of, layers_of, neutral_texts, residual_norms, unit, width_of

        lm = lab.model()
        layers = layers_of(self, lm)
        norms = residual_norms(lm, layers, neutral_texts(lab))
        sizes = self._sizes(layers, norms)
        generator = torch.Generator().manual_seed(lab.seed("steering", "random"))
        return content_of(
            {layer: sizes[layer] * unit(torch.randn(width_of(lm.model), generator=generator)) for layer in layers},
            norms,
        )

    def _sizes(self, layers: tuple[int, ...], norms: dict[int, float]) -> dict[int, float]:
        from latentbench.core.errors import InvalidInput

        if self.like is not None:
            if not norms:
                raise InvalidInput(
                    "random: `like` measures the residual stream on texts; the spec has no `dataset.eval`"
                )
            return {layer: self.like * norms[layer] for layer in layers}
        if isinstance(self.norm, tuple):
            if len(self.norm) != len(layers):
                raise InvalidInput(f"random: {len(self.norm)} norms for {len(layers)} layers")
            return dict(zip(layers, self.norm, strict=True))
        assert self.norm is not None
        return dict.fromkeys(layers, self.norm)


class LoadMethod(SteeringMethod):
    """Vectors from a file: latentbench's .safetensors, repeng's .gguf, or lm-eval's .pt (which is never unpickled)."""

    method: Literal["load"] = "load"
    measures_norms: ClassVar[bool] = True
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """The file, relative to the project."""
    other_model: bool = False
    """Whether a vector that was made for another model or revision may be used all the same (transfer); its width must
    fit."""

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """The file's digest instead of its path."""
        from latentbench.core.hashing import file_digest

        named = super().identity(experiment, roots)
        return {**named, "path": None, "file": file_digest(vector_file(self.path, roots))}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"vectors of {self.path}"

    def make(self, lab: StageContext) -> Content:
        """The vectors asked for. Raises RefusedFile for a malformed or unsafe file and another model's vectors."""
        from latentbench.steering.build import content_of, neutral_texts, residual_norms

        lm, vectors = lab.model(), vectors_from(self.path, lab, self.other_model)
        if self.layers != "all":
            from latentbench.steering.build import layers_of

            vectors = vectors.only(*layers_of(self, lm))
        norms = residual_norms(lm, vectors.layers, neutral_texts(lab))
        return content_of(vectors.vectors, norms, made_for=vectors.model)


def _parsed_method(value: Any) -> Any:
    """The section that a map stands for."""
    if not isinstance(value, dict):
        return value
    # Built when first used: the stack is itself among the choices.
    choice = TypeAdapter[Any](Annotated[Any, Choice("methods", "method")])
    return choice.validate_json(json.dumps(value), strict=True)


class StackMethod(SteeringMethod):
    """Several methods at once; their scales and scopes are their own."""

    method: Literal["stack"] = "stack"
    parts: Annotated[tuple[Annotated[Any, BeforeValidator(_parsed_method)], ...], Field(min_length=1, max_length=16)]
    """Sections as under `steering:`, switched on in this order."""

    @model_validator(mode="after")
    def _own_use(self) -> Any:
        if any(getattr(self, name) != type(self).model_fields[name].default for name in self.of_use | {"layers"}):
            raise ValueError("layers, scale, relative and scope stand in the parts of a stack")
        return self

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return tuple(message for part in self.parts for message in part.problems_in(experiment, roots))

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"method": self.method, "parts": [part.identity(experiment, roots) for part in self.parts]}

    def longest_answer(self, roots: Roots) -> Longest | None:
        asked = [longest for part in self.parts if (longest := part.longest_answer(roots))]
        return max(asked, key=lambda longest: longest.tokens, default=None)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return " + ".join(part.made_of(experiment, roots) for part in self.parts)

    def make(self, lab: StageContext) -> Content:
        """The parts' contents side by side."""
        made = [part.make(_of_part(lab, number)) for number, part in enumerate(self.parts)]
        tensors = {f"{number}/{name}": t for number, part in enumerate(made) for name, t in part.tensors.items()}
        return Content(tensors, {"parts": [dict(part.meta) for part in made]})

    def read(self, content: Content, lab: StageContext) -> Intervention:
        from latentbench.interventions.intervention import Stack

        parts = []
        for number, (part, meta) in enumerate(zip(self.parts, content.meta["parts"], strict=True)):
            start = f"{number}/"
            tensors = {n.removeprefix(start): t for n, t in content.tensors.items() if n.startswith(start)}
            parts.append(part.read(Content(tensors, meta), lab))
        return Stack(parts)


def _of_part(lab: StageContext, number: int) -> StageContext:
    """The same surroundings with a key and a folder of its own, so that parts differ and keep their checkpoints apart."""
    from dataclasses import replace

    from latentbench.core.hashing import digest

    return replace(lab, key=digest("part", [lab.key, number]), scratch=lab.scratch / f"part{number}")
