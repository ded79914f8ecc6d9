"""`method: flow`: steering vectors along a flow graph, one per layer of its path (Feature Flow, arXiv 2502.03032, §3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from latentbench.core.spec_model import Json
from latentbench.flow.options import (
    CountedFrom,
    Flow,
    Fold,
    Growth,
    Latent,
    Span,
    missing_texts,
    unfoldable,
    unknown_latents,
    unreached_span,
)
from latentbench.steering.method import USED, SteeringMethod
from latentbench.study.context import Content, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView


class FlowMethod(SteeringMethod):
    """Decoder directions of what some latents become of and come from, through the layers that have SAEs: with norm one, or
    folded."""

    method: Literal["flow"] = "flow"
    newer: ClassVar[frozenset[str]] = USED | {"counted_from", "fold"}
    measures_norms: ClassVar[bool] = True
    many_sites: ClassVar[bool] = True
    of_sae: ClassVar[bool] = True
    swept: ClassVar[frozenset[str]] = frozenset({"dose", "scale"})

    latents: Annotated[tuple[Latent, ...], Field(min_length=1, max_length=64)]
    """Seed latents of the residual stream, e.g. `3:17` or `3.resid_post:17`; the vectors of their paths are added up."""
    matching: Flow = Flow()
    """How latents of neighbouring layers are matched, as under `flow:`."""
    schedule: Growth = "constant"
    """Strength per layer l of a path that begins at l₀: s, from s to 1 at its end, or s · exp(alpha · (l − l₀))."""
    strength: PositiveFloat = 1.0
    """s of the schedule."""
    alpha: float = -0.05
    """Growth per layer of `schedule: exponential`."""
    counted_from: CountedFrom = "path"
    """Where `schedule: exponential` counts layers from: the path's first one, or as in the paper the model's, for
    s · exp(alpha · l)."""
    fold: Fold = "none"
    """What decoder rows are multiplied by instead of being brought to norm one: thresholds (the paper, for JumpReLU), or mean
    activations on the texts that maps are fitted on."""
    span: Span | None = None
    """First and last decoder block that get a vector; default all of the paths."""

    @model_validator(mode="after")
    def _layers_of_paths(self) -> Any:
        if self.layers != "all":
            raise ValueError("the layers of a flow are those of its paths; `span` bounds them")
        if self.counted_from == "model" and self.schedule != "exponential":
            raise ValueError("counted_from: only `schedule: exponential` counts layers; leave it out")
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """The maps' own identity stands for `matching`."""
        made = {**super().identity(experiment, roots), "matching": self.matching.identity(experiment, roots)}
        return made | {"fold_on": self.matching.texts(experiment, roots)} if self.fold == "activation" else made

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        """What is wrong with the matching, the latents and the span."""
        return (
            *super().problems_in(experiment, roots),
            *self.matching.problems_in(experiment, roots),
            *unknown_latents(experiment, self.latents),
            *unreached_span(experiment, self.span),
            *(unfoldable(experiment) if self.fold == "threshold" else ()),
            *(missing_texts(self.matching, experiment) if self.fold == "activation" else ()),
        )

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"{self.schedule} flow of {', '.join(self.latents)}"

    def make(self, context: StageContext) -> Content:
        """One vector [d] per block of the paths. Raises InvalidInput for latents that no SAE of the spec has."""
        from latentbench.flow.build import build_maps
        from latentbench.flow.folded_rows import folded_rows
        from latentbench.flow.graph import parse_node, traced
        from latentbench.flow.interventions import along, route
        from latentbench.steering.build import content_of, neutral_texts, residual_norms, unit

        maps = self.matching.read(build_maps(self.matching, context), context)
        seeds = [parse_node(text) for text in self.latents]
        paths = {str(seed): traced(maps, seed).path() for seed in seeds}
        nodes = (node for path in paths.values() for node in path)
        rows = {node: row.cpu() for node, row in folded_rows(self.fold, self.matching, context, nodes).items()}
        # Without a fold a row's norm means nothing: it depends on how large the activations of the SAE are.
        atoms = {node: unit(row) for node, row in rows.items()} if self.fold == "none" else rows
        routes = [route(maps, seed, self.span) for seed in seeds]
        chosen = along(atoms, routes, self.schedule, self.strength, alpha=self.alpha, counted_from=self.counted_from)
        vectors = chosen.vectors.vectors
        norms = residual_norms(context.model(), tuple(vectors), neutral_texts(context))
        named = {seed: list(map(str, path)) for seed, path in paths.items()}
        return self.dosed(content_of(vectors, norms, paths=named), context)
