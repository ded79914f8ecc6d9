"""`method: conditional`: another method, only at the tokens where a probe or a latent says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json, SpecModel
from latentbench.interventions.intervention import Intervention
from latentbench.steering.latents import placed_problems
from latentbench.steering.method import SteeringMethod, longest_answer_of, of_part, parsed_method
from latentbench.study.context import Content, Longest, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.interventions.changes import Condition
    from latentbench.study.context import ExperimentView

Method = Annotated[Any, BeforeValidator(parsed_method)]


class When(SpecModel):
    """A condition on the hidden state of the token itself, as it is before the change."""

    probe: Method | None = None
    """A method that makes a vector d at one layer, as under `steering:`; the value is h · d at its `place` in that block, d as
    long as it is made."""
    latent: Annotated[int, Field(ge=0)] | None = None
    """Or a latent of the cell's SAE; the value is its activation. Massive tokens have none."""
    above: float | None = None
    """The condition holds where the value is larger."""
    below: float | None = None
    """Or where it is smaller."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Any:
        if (self.probe is None) == (self.latent is None):
            raise ValueError("when: state either probe or latent")
        if (self.above is None) == (self.below is None):
            raise ValueError("when: state either above or below")
        if self.probe is not None:
            if not self.probe.adds_vectors or hasattr(self.probe, "parts"):
                raise ValueError(f"when: the method {self.probe.method!r} makes no vector to probe with")
            if stated := self.probe.stated_use():
                raise ValueError(
                    f"when: `{stated[0]}` has no meaning for a probe; the threshold is on h · d as it is made"
                )
        return self

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        """What is wrong with asking for it in this experiment."""
        return placed_problems("when", experiment) if self.probe is None else self.probe.problems_in(experiment, roots)

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What is made for it; which latent it is, and the threshold, say how that is used."""
        if self.probe is not None:
            return self.probe.identity(experiment, roots)
        return {"token_rule": experiment.token_rule.plain()}

    def read(self, content: Content, context: StageContext) -> Condition:
        """The condition. Raises InvalidInput for a probe that is not made at exactly one layer."""
        from latentbench.core.sites import Site
        from latentbench.interventions.conditions import DirectionCondition, LatentCondition, Threshold
        from latentbench.steering.build import by_layer, place_of
        from latentbench.steering.placed_saes import placed_sae

        value = self.above if self.above is not None else self.below
        assert value is not None  # it was validated: one of the two is stated
        threshold = Threshold(value, self.above is not None)
        if self.latent is not None:
            return LatentCondition(placed_sae(content, context), self.latent, threshold)
        vectors = by_layer(content)
        if len(vectors) != 1:
            raise InvalidInput(f"when: the probe is made at {len(vectors)} layers; state one in its `layers`")
        ((layer, direction),) = vectors.items()
        return DirectionCondition(Site(index=layer, point=place_of(content)), direction, threshold)


class ConditionalMethod(SteeringMethod):
    """Another method, only at the tokens where a condition holds (as in arXiv 2409.05907, but token by token)."""

    adds_vectors: ClassVar[bool] = False
    swept: ClassVar[frozenset[str]] = frozenset()
    measures_norms: ClassVar[bool] = True

    method: Literal["conditional"] = "conditional"
    part: Method
    """The method, as under `steering:`; its scale, scope and positions are its own."""
    when: When
    """Where it acts; what says so is read at or before the first layer that is changed."""

    @model_validator(mode="after")
    def _own_use(self) -> Any:
        if self.stated_use() or self.layers != "all":
            raise ValueError("conditional: layers, scale, relative, scope and all else of use stand in its `part`")
        if not self.part.usable or hasattr(self.part, "parts") or isinstance(self.part, ConditionalMethod):
            raise ValueError(
                f"conditional: the method {self.part.method!r} cannot act at some tokens only; name one that adds vectors, "
                "`ablate` or `sae_latents`"
            )
        return self

    @property
    def sources(self) -> tuple[Any, ...]:
        return (self.part,) if self.when.probe is None else (self.part, self.when.probe)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return (*self.part.problems_in(experiment, roots), *self.when.problems_in(experiment, roots))

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        made = super().identity(experiment, roots)
        return {
            **{name: value for name, value in made.items() if name not in ("part", "when")},
            "part": self.part.identity(experiment, roots),
            "when": self.when.identity(experiment, roots),
        }

    def longest_answer(self, roots: Roots) -> Longest | None:
        return longest_answer_of(self.sources, roots)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        read = f"latent {self.when.latent}" if self.when.probe is None else self.when.probe.made_of(experiment, roots)
        return f"{self.part.made_of(experiment, roots)} where {read} says so"

    @property
    def control(self) -> str | None:
        control: str | None = self.part.control
        return control

    def make(self, context: StageContext) -> Content:
        """The contents of the part and of what its condition reads, side by side."""
        from latentbench.steering.build import joined
        from latentbench.steering.placed_saes import norm_limit

        own = self.part.make(of_part(context, 0))
        inner = of_part(context, 1)
        read = norm_limit(self, inner) if self.when.probe is None else self.when.probe.make(inner)
        return joined([own, read])

    def read(self, content: Content, context: StageContext) -> Intervention:
        from latentbench.interventions.changing import StateChange
        from latentbench.steering.build import parted

        own, read = parted(content)
        made = self.part.read(own, context)
        if not isinstance(made, StateChange):
            raise InvalidInput(f"conditional: the method {self.part.method!r} does not change hidden states")
        return made.where(self.when.read(read, context))
