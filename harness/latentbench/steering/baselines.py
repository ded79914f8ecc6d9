"""Steering that is not computed from what the model does: none, a prefix, random vectors, vectors from files, and stacks.

Files of steering vectors that a spec names lie inside the project, are of the cell's model, and are never unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.hashing import file_digest
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention, Stack, Untouched
from latentbench.steering.method import SteeringMethod, longest_answer_of, of_part, parsed_method
from latentbench.study.context import Content, Longest, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView


def vector_file(path: str, roots: Roots) -> Path:
    """The file meant by `path`. Raises InvalidInput when it leaves the project, NotAvailable when it is not there."""
    try:
        found = roots.resolve(path)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if not found.is_file():
        raise NotAvailable(f"there is no file {path!r} (paths are relative to the project)")
    return found


Positive = Annotated[float, Field(gt=0)]


class NoSteering(SteeringMethod):
    """The model as it is, as a row of its own."""

    adds_vectors: ClassVar[bool] = False
    usable: ClassVar[bool] = False
    swept: ClassVar[frozenset[str]] = frozenset()

    method: Literal["none"] = "none"

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"method": self.method}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return "no steering"

    def make(self, context: StageContext) -> Content:
        return Content()

    def read(self, content: Content, context: StageContext) -> Intervention:
        return Untouched()


class PrefixMethod(SteeringMethod):
    """A text appended to every prompt instead of a vector."""

    adds_vectors: ClassVar[bool] = False
    usable: ClassVar[bool] = False
    swept: ClassVar[frozenset[str]] = frozenset()

    method: Literal["prefix"] = "prefix"
    text: Annotated[str, Field(min_length=1, max_length=10_000)]
    """What is appended, white space included, e.g. ` To find out`."""

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"method": self.method, "text": self.text}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"prefix {self.text!r}"

    @property
    def control(self) -> str:
        return f"the prefix “{self.text}” in place of a vector"

    def make(self, context: StageContext) -> Content:
        return Content()

    def read(self, content: Content, context: StageContext) -> Intervention:
        return Untouched(self.text)


class RandomMethod(SteeringMethod):
    """Control: vectors of random direction, one per layer, with the norm of what they are compared with."""

    implementation: ClassVar[str] = "latentbench.steering.computed_vectors:random_vectors"
    placed: ClassVar[bool] = True
    measures_norms: ClassVar[bool] = True

    method: Literal["random"] = "random"
    norm: Positive | tuple[Positive, ...] | None = None
    """Norm of every vector, or one number per layer in ascending order (those of a trained vector, for a fair control)."""
    like: Positive | None = None
    """Norm as a fraction of the mean norm of the layer's residual stream."""

    @model_validator(mode="after")
    def _one_norm(self) -> Any:
        if (self.norm is None) == (self.like is None):
            raise ValueError("state either norm or like")
        return self

    @property
    def control(self) -> str:
        return "random vectors"


class LoadMethod(SteeringMethod):
    """Vectors from a file: latentbench's .safetensors, repeng's .gguf, or lm-eval's .pt (which is never unpickled)."""

    implementation: ClassVar[str] = "latentbench.steering.computed_vectors:loaded_vectors"
    placed: ClassVar[bool] = True
    measures_norms: ClassVar[bool] = True

    method: Literal["load"] = "load"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """The file, relative to the project."""
    other_model: bool = False
    """Whether a vector that was made for another model or revision may be used all the same (transfer); its width must
    fit."""

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """The file's digest instead of its path."""
        named = super().identity(experiment, roots)
        return {**named, "path": None, "file": file_digest(vector_file(self.path, roots))}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"vectors of {self.path}"


class StackMethod(SteeringMethod):
    """Several methods at once; their scales and scopes are their own."""

    swept: ClassVar[frozenset[str]] = frozenset()

    method: Literal["stack"] = "stack"
    parts: Annotated[tuple[Annotated[Any, BeforeValidator(parsed_method)], ...], Field(min_length=1, max_length=16)]
    """Methods as under `steering:`. Where they change the same place, each finds what those before it have left."""

    @model_validator(mode="after")
    def _own_use(self) -> Any:
        if self.stated_use() or self.layers != "all":
            raise ValueError("layers, scale, relative, scope and all else of use stand in the parts of a stack")
        return self

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return tuple(message for part in self.parts for message in part.problems_in(experiment, roots))

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"method": self.method, "parts": [part.identity(experiment, roots) for part in self.parts]}

    def longest_answer(self, roots: Roots) -> Longest | None:
        return longest_answer_of(self.parts, roots)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return " + ".join(part.made_of(experiment, roots) for part in self.parts)

    @property
    def control(self) -> str | None:
        """A stack is a control where every part of it is one."""
        found = [part.control for part in self.parts]
        return " and ".join(dict.fromkeys(found)) if all(found) else None

    def make(self, context: StageContext) -> Content:
        """The parts' contents side by side."""
        from latentbench.steering.build import joined

        return joined([part.make(of_part(context, number)) for number, part in enumerate(self.parts)])

    def read(self, content: Content, context: StageContext) -> Intervention:
        from latentbench.steering.build import parted

        return Stack([part.read(own, context) for part, own in zip(self.parts, parted(content), strict=True)])
