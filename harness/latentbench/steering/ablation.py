"""`method: ablate`: directions projected out of the residual stream instead of added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention
from latentbench.steering.method import SteeringMethod, longest_answer_of, parsed_method
from latentbench.study.context import Content, Longest, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView


class AblateMethod(SteeringMethod):
    """Directions are projected out: h ← h − scale · P h, in float32, P the projection on their span (arXiv 2406.11717).

    A direction that is made at one layer is projected out at all of `layers`; directions made at several are projected out
    where they were made. In which hidden state of these blocks, `place` says, wherever the directions come from. With
    `scale: 1` nothing is left along them; with 2 the stream is mirrored.
    """

    implementation: ClassVar[str] = "latentbench.steering.computed_vectors:ablated_directions"
    adds_vectors: ClassVar[bool] = False
    placed: ClassVar[bool] = True
    swept: ClassVar[frozenset[str]] = frozenset({"layers", "scale"})

    method: Literal["ablate"] = "ablate"
    directions: Annotated[
        tuple[Annotated[Any, BeforeValidator(parsed_method)], ...], Field(min_length=1, max_length=64)
    ]
    """Methods that make vectors, as under `steering:` (`contrastive`, `sae_latent`, `load`, `random`, …); of several the span
    is projected out. Their lengths do not matter."""

    @model_validator(mode="after")
    def _only_directions(self) -> Any:
        if self.relative:
            raise ValueError("ablate: `scale` is the share that is taken away, so it cannot be relative")
        for part in self.directions:
            if not part.adds_vectors or hasattr(part, "parts"):
                raise ValueError(f"ablate: the method {part.method!r} makes no vector to project out")
            if stated := part.stated_use():
                raise ValueError(f"ablate: `{stated[0]}` has no meaning for a direction; state it for ablate itself")
        return self

    @property
    def sources(self) -> tuple[Any, ...]:
        return self.directions

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return tuple(message for part in self.directions for message in part.problems_in(experiment, roots))

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        made = super().identity(experiment, roots)
        return {**made, "directions": [part.identity(experiment, roots) for part in self.directions]}

    def longest_answer(self, roots: Roots) -> Longest | None:
        return longest_answer_of(self.directions, roots)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"without {' + '.join(part.made_of(experiment, roots) for part in self.directions)} ({self._where()})"

    @property
    def control(self) -> str | None:
        return "random directions" if all(part.control for part in self.directions) else None

    def read(self, content: Content, context: StageContext) -> Intervention:
        from latentbench.interventions.ablation import Ablation
        from latentbench.steering.build import by_layer

        return Ablation(by_layer(content), self.factor, self.scope, self.use(), self.place)
