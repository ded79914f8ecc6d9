"""What every way to a steering vector has in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from latentbench.core.errors import InvalidInput
from latentbench.core.plugins import implementation
from latentbench.core.sites import Layer, block_number
from latentbench.core.spec_model import Json
from latentbench.study.context import Content, StageContext, Subject

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.interventions.intervention import Intervention
    from latentbench.study.context import ExperimentView


def parts_of(steering: Any) -> Iterator[Any]:
    """The methods that the `steering:` of a spec switches on: those of a stack, else itself; nothing for none."""
    if steering is None:
        return
    if (parts := getattr(steering, "parts", None)) is None:
        yield steering
    for part in parts or ():
        yield from parts_of(part)


class SteeringMethod(Subject):
    """Base of everything that `steering:` can name.

    What is *made* (vectors, an adapter) does not depend on how strongly and where it is then used: scales can be swept
    without training anew.

    A method states its options, which are read without torch, and names what makes its content as `implementation`; one
    that needs no torch may override `make` instead.
    """

    version: ClassVar[int] = 1
    implementation: ClassVar[str]
    """`module:function` that makes the content from the method and the stage's context."""
    of_use: ClassVar[frozenset[str]] = frozenset({"scale", "relative", "scope"})
    """Fields that say how the content is used, not what it is."""
    measures_norms: ClassVar[bool] = False
    """Whether the residual stream's mean norm is measured on the cell's first evaluation texts."""
    adds_vectors: ClassVar[bool] = True
    """Whether it steers by vectors that are the same at every token: what has a scale and a mechanism to be looked at."""

    method: str
    layers: Literal["all"] | Layer | tuple[Layer, ...] = "all"
    """Decoder blocks that get a vector, added to their output: all, a number or a list; -1 is the last one."""
    scale: float = 1.0
    """Factor of the vectors when they are used."""
    relative: bool = False
    """Whether `scale` is a fraction of the residual stream's mean norm instead of a factor of the vector itself. The norm
    is that of the texts the vectors were made from (training problems, negative texts), else of the first evaluation
    texts, so equal fractions of two methods are not equal lengths."""
    scope: Literal["all", "generated", "first", "prompt"] = "all"
    """Tokens that are changed: all, those that generated tokens are predicted from, the one that the first generated
    token is predicted from, or the rest of the prompt."""

    @model_validator(mode="after")
    def _some_layer(self) -> Any:
        if isinstance(self.layers, tuple) and (not self.layers or len(set(self.layers)) != len(self.layers)):
            raise ValueError("layers must be a list of different numbers, at least one")
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What the content is made from: every field but those of use, and the content of what they name."""
        made = {name: value for name, value in self.plain().items() if name not in self.of_use}
        if self.measures_norms and experiment.dataset.eval:
            # The norms are stored with the vectors, so other texts make other content, even where no scale is relative.
            texts = next(iter(experiment.dataset.eval.values()))
            made["norms_on"] = [texts.chosen_identity(roots), texts.skip, texts.documents]
        return made

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"{self.method} ({self._where()})"

    def chosen(self, blocks: int) -> tuple[int, ...]:
        """Block numbers that `layers` means in a model of that many. Raises InvalidInput for one it does not have."""
        if self.layers == "all":
            return tuple(range(blocks))
        asked = (self.layers,) if isinstance(self.layers, int) else self.layers
        found = {number for layer in asked if (number := block_number(layer, blocks)) is not None}
        if len(found) < len(asked):  # also where -1 and the last number, say, are one block
            raise InvalidInput(
                f"steering layers {self.layers}: the model has {blocks} blocks, numbered 0 to {blocks - 1}"
            )
        return tuple(sorted(found))

    def make(self, context: StageContext) -> Content:
        """What `implementation` makes. Raises NotAvailable where that cannot be imported."""
        made: Content = implementation(self.implementation)(self, context)
        return made

    def read(self, content: Content, context: StageContext) -> Intervention:
        """The content as something that can be switched on."""
        from latentbench.interventions.injection import VectorInjection
        from latentbench.steering.build import vectors_of

        return VectorInjection(vectors_of(content, context), self.scale, self.scope, self.relative)

    def _where(self) -> str:
        return "all layers" if self.layers == "all" else f"layers {self.layers}".replace("(", "").replace(")", "")
