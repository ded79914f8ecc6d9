"""`method: transfer`: vectors that were made elsewhere: on another model of the family, with another seed, at other blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import ModelAdapter
from latentbench.core.spec_model import Json
from latentbench.steering.method import SteeringMethod, longest_answer_of, parsed_method
from latentbench.study.context import Longest, Origin

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView


class TransferMethod(SteeringMethod):
    """Vectors of another cell (arXiv 2509.06608, §9): those that `vectors` makes on `model`, added to this model.

    They are a stage of their own, the very one of a cell that steers by `vectors` on that model with that seed and the same
    texts: what is in the store is not made again. `layers` are the blocks that they are added to here, the first to the first;
    a vector that is made at one block is added to all of them.
    """

    implementation: ClassVar[str] = "latentbench.steering.transferred:transferred_vectors"
    measures_norms: ClassVar[bool] = True
    swept: ClassVar[frozenset[str]] = frozenset({"dose", "scale"})

    method: Literal["transfer"] = "transfer"
    vectors: Annotated[Any, BeforeValidator(parsed_method)]
    """The method that makes them, as under `steering:`; which hidden state they are added to, its `place` says."""
    model: Annotated[ModelAdapter, Choice("models", "adapter")] | None = None
    """The model that they are made on; default: this one. Its hidden states must be as wide."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """The seed that they are made with; default: the cell's own."""
    rescale: Literal["no", "norms"] = "no"
    """`norms`: each vector is multiplied by the mean norm of the hidden states where it is added, divided by that where it was
    made, both on the first evaluation texts; so it is as long beside them as it was at home."""

    @model_validator(mode="after")
    def _only_vectors(self) -> Any:
        source = self.vectors
        if not source.adds_vectors or hasattr(source, "parts") or source.of_sae:
            raise ValueError(f"transfer: the method {source.method!r} makes no vectors that another model could take")
        if source.found:
            raise ValueError(
                f"transfer: `{source.found[0]}: auto` is found where vectors are used; state what they are made with"
            )
        trained_scope = set() if "scope" in source.of_use else {"scope"}
        if stated := [name for name in source.stated_use() if name not in trained_scope]:
            raise ValueError(
                f"transfer: `{stated[0]}` has no meaning for vectors as they are made; state it for transfer itself"
            )
        if source.scope != self.scope and trained_scope:
            raise ValueError(f"transfer: the vectors are trained in the scope {source.scope!r}; state the same `scope`")
        if self.layers != "all" and source.layers != "all" and _count(source.layers) not in (1, _count(self.layers)):
            made, here = _count(source.layers), _count(self.layers)
            raise ValueError(
                f"transfer: {made} vectors cannot be added to {here} blocks; name as many `layers` as there are"
            )
        return self

    @property
    def sources(self) -> tuple[Any, ...]:
        return (self.vectors,)

    @property
    def origin(self) -> Origin:
        return Origin(self.vectors, self.model, self.seed)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        found = [*super().problems_in(experiment, roots), *self.vectors.problems_in(experiment, roots)]
        if self.rescale == "norms" and not experiment.dataset.eval:
            found.append("transfer: norms are measured on evaluation texts, and there is no `dataset.eval`; add one")
        if self.model is not None:
            self.model.identity(roots)  # what is wrong with it is said here
            home, here = self.model.facts(roots), experiment.model.facts(roots)
            if home and here and home.d_model != here.d_model:
                widths = f"{home.d_model} wide on the model that they are made on, {here.d_model} on this one"
                found.append(f"transfer: hidden states are {widths}, so no vector fits both")
        return tuple(found)

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What is done with the vectors: what makes them is a stage above this one."""
        made = super().identity(experiment, roots)
        return {name: value for name, value in made.items() if name not in ("vectors", "model", "seed")}

    def longest_answer(self, roots: Roots) -> Longest | None:
        return longest_answer_of(self.sources, roots)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        home = "" if self.model is None else f" from {self.model.label}"
        seed = "" if self.seed is None else f" of seed {self.seed}"
        rescaled = ", rescaled" if self.rescale == "norms" else ""
        return f"{self.vectors.made_of(experiment, roots)}{home}{seed} at {self._where()}{rescaled}"


def _count(layers: Any) -> int:
    return len(layers) if isinstance(layers, tuple) else 1
