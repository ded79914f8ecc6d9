"""`method: flow`: steering vectors along a flow graph, one per layer of its path (Feature Flow, arXiv 2502.03032, §3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from latentbench.core.spec_model import Json
from latentbench.flow.options import Flow, Growth, Latent, Span, unknown_latents, unreached_span
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Content, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView


class FlowMethod(SteeringMethod):
    """Decoder directions, with norm one, of what some latents become of and come from, through the layers that have SAEs."""

    method: Literal["flow"] = "flow"
    measures_norms: ClassVar[bool] = True
    many_sites: ClassVar[bool] = True

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
    span: Span | None = None
    """First and last decoder block that get a vector; default all of the paths."""

    @model_validator(mode="after")
    def _layers_of_paths(self) -> Any:
        if self.layers != "all":
            raise ValueError("the layers of a flow are those of its paths; `span` bounds them")
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """The maps' own identity stands for `matching`."""
        return {**super().identity(experiment, roots), "matching": self.matching.identity(experiment, roots)}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        """What is wrong with the matching, the latents and the span."""
        return (
            *super().problems_in(experiment, roots),
            *self.matching.problems_in(experiment, roots),
            *unknown_latents(experiment, self.latents),
            *unreached_span(experiment, self.span),
        )

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"{self.schedule} flow of {', '.join(self.latents)}"

    def make(self, context: StageContext) -> Content:
        """One vector [d] per block of the paths. Raises InvalidInput for latents that no SAE of the spec has."""
        from latentbench.flow.build import build_maps
        from latentbench.flow.graph import parse_node, traced
        from latentbench.flow.interventions import along, route
        from latentbench.flow.matching import decoder_rows
        from latentbench.steering.build import content_of, neutral_texts, residual_norms, unit

        maps = self.matching.read(build_maps(self.matching, context), context)
        seeds = [parse_node(text) for text in self.latents]
        paths = {str(seed): traced(maps, seed).path() for seed in seeds}
        nodes = dict.fromkeys(node for path in paths.values() for node in path)
        rows = {node: decoder_rows(context.saes()[node.site], node.site)[node.index] for node in nodes}
        atoms = {node: unit(row.float().cpu()) for node, row in rows.items()}
        routes = [route(maps, seed, self.span) for seed in seeds]
        chosen = along(atoms, routes, self.schedule, self.strength, alpha=self.alpha)
        vectors = chosen.vectors.vectors
        norms = residual_norms(context.model(), tuple(vectors), neutral_texts(context))
        named = {seed: list(map(str, path)) for seed, path in paths.items()}
        return self.dosed(content_of(vectors, norms, paths=named), context)
