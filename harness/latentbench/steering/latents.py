"""`method: sae_latents`: latents of the cell's SAE clamped, scaled or suppressed while the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Content, StageContext

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

Latents = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=1000)]


class SaeLatentsMethod(SteeringMethod):
    """Latents of the cell's SAE are set to other values where it reads: h ← h + scale · Σ (z' − z) · v.

    v are their decoder rows. What the SAE does not explain stays as it is. Massive tokens, for which SAEs are not made, are
    left alone.
    """

    implementation: ClassVar[str] = "latentbench.steering.placed_saes:norm_limit"
    of_use: ClassVar[frozenset[str]] = frozenset({"scale", "relative", "scope", "latents", "clamp", "times"})
    adds_vectors: ClassVar[bool] = False
    swept: ClassVar[frozenset[str]] = frozenset({"scale"})
    measures_norms: ClassVar[bool] = True

    method: Literal["sae_latents"] = "sae_latents"
    latents: Latents
    """Numbers of the latents."""
    clamp: float | tuple[float, ...] | None = None
    """z': the activation that they are given at every token, one number for all or one each."""
    times: float | None = None
    """Or what their activations are multiplied by: 0 suppresses them."""

    @model_validator(mode="after")
    def _one_way(self) -> Any:
        if (self.clamp is None) == (self.times is None):
            raise ValueError("sae_latents: state either clamp or times")
        if len(set(self.latents)) != len(self.latents):
            raise ValueError("sae_latents: the latents must be different")
        if isinstance(self.clamp, tuple) and len(self.clamp) != len(self.latents):
            raise ValueError(f"sae_latents: {len(self.clamp)} values to clamp {len(self.latents)} latents to")
        if self.layers != "all" or self.relative:
            raise ValueError("sae_latents: the layer is that of the SAE, and `scale` multiplies what is decoded there")
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {**super().identity(experiment, roots), "token_rule": experiment.token_rule.plain()}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return placed_problems(self.method, experiment)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        to = f"times {self.times}" if self.clamp is None else f"at {self.clamp}"
        return f"latents {', '.join(map(str, self.latents))} {to}"

    def read(self, content: Content, context: StageContext) -> Intervention:
        import torch

        from latentbench.interventions.latents import LatentEdit
        from latentbench.steering.placed_saes import placed_sae

        latents, clamp = torch.tensor(self.latents), None
        if self.clamp is not None:
            each = self.clamp if isinstance(self.clamp, tuple) else [self.clamp] * len(self.latents)
            clamp = torch.tensor(each, dtype=torch.float32)
        placed = placed_sae(content, context)
        return LatentEdit(placed, latents, clamp, self.times or 0.0, self.factor, self.scope, self.use())


def placed_problems(method: str, experiment: ExperimentView) -> tuple[str, ...]:
    """What is wrong where a method reads the cell's SAE."""
    if len(experiment.sites) != 1:
        return (f"{method}: this needs one SAE, the spec has {len(experiment.sites)}",)
    if experiment.token_rule.multiple is not None and not experiment.dataset.eval:
        return (
            f"{method}: which tokens are massive is told by evaluation texts, and there is no `dataset.eval`; "
            "add one, or set `massive: keep`",
        )
    return ()
