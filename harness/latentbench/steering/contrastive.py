"""Vectors found in the model's hidden states, or in an SAE's dictionary, without gradient steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import ProblemSet
from latentbench.core.sites import OUTPUT
from latentbench.core.spec_model import Json
from latentbench.steering.method import SteeringMethod

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

Texts = tuple[str, ...]


class ContrastiveMethod(SteeringMethod):
    """Difference between hidden states of positive and negative texts (contrastive activation addition)."""

    implementation: ClassVar[str] = "latentbench.steering.computed_vectors:contrastive_vectors"
    placed: ClassVar[bool] = True

    method: Literal["contrastive"] = "contrastive"
    positive: Texts = ()
    """Texts that show what is wanted; with `problems`, what is appended to the prompts."""
    negative: Texts = ()
    """As many texts that do not; text i is the counterpart of positive text i."""
    problems: Annotated[ProblemSet, Choice("problems", "adapter")] | None = None
    """Problems whose prompts stand before the texts; every prompt is paired with every text."""
    prompts: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Prompts read from `problems`."""
    estimate: Literal["mean", "pca"] = "mean"
    """Difference of means, or the first right singular vector of the paired differences (which are not centred), with
    their mean's length in its direction."""
    token: Literal["last", "mean"] = "last"
    """The state of a text: at its last token, or the mean over its tokens."""

    @model_validator(mode="after")
    def _pairs(self) -> Any:
        if not self.positive or len(self.positive) != len(self.negative):
            raise ValueError("positive and negative must hold the same number of texts, at least one")
        return self

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        made = super().identity(experiment, roots)
        return {**made, "problems": self.problems.identity(roots) if self.problems else None}


class SaeLatentMethod(SteeringMethod):
    """The decoder direction of one latent of the cell's SAE, with norm one, at the SAE's layer.

    It is added to the residual stream behind what the SAE reads, or with `place` there itself.
    """

    implementation: ClassVar[str] = "latentbench.steering.computed_vectors:sae_latent_vector"
    of_sae: ClassVar[bool] = True
    placed: ClassVar[bool] = True
    measures_norms: ClassVar[bool] = True
    swept: ClassVar[frozenset[str]] = frozenset({"dose", "scale"})

    method: Literal["sae_latent"] = "sae_latent"
    latent: Annotated[int, Field(ge=0)]
    """Number of the latent."""

    @model_validator(mode="after")
    def _layer_of_sae(self) -> Any:
        if self.layers != "all":
            raise ValueError("the layer of an SAE latent is that of the SAE")
        return self

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        read = {site.point for site in experiment.sites}
        if self.place == OUTPUT or self.place in read:
            return super().problems_in(experiment, roots)
        return (f"sae_latent: its place is that of the SAE, {' and '.join(sorted(read)) or 'and there is none'}",)

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"decoder direction of latent {self.latent}"
