"""Vectors found in the model's hidden states, or in an SAE's dictionary, without gradient steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import ProblemSet
from latentbench.core.spec_model import Json
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Content, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

Texts = tuple[str, ...]


class ContrastiveMethod(SteeringMethod):
    """Difference between hidden states of positive and negative texts (contrastive activation addition)."""

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

    def make(self, lab: StageContext) -> Content:
        """One vector per layer from the paired differences of the texts' states."""
        from latentbench.steering.build import content_of, layers_of, residual_norms

        lm = lab.model()
        layers = layers_of(self, lm)
        positive, negative = self._texts(lab)
        states = [_states(lm, layers, texts, self.token) for texts in (positive, negative)]
        differences = {layer: states[0][layer] - states[1][layer] for layer in layers}
        vectors = {layer: self._direction(pairs) for layer, pairs in differences.items()}
        return content_of(vectors, residual_norms(lm, layers, negative), pairs=len(positive))

    def _texts(self, lab: StageContext) -> tuple[list[str], list[str]]:
        from latentbench.steering.build import read_problems

        if self.problems is None:
            return list(self.positive), list(self.negative)
        prompts = [problem.prompt for problem in read_problems(self.problems, lab.roots, self.prompts)]
        return [p + t for p in prompts for t in self.positive], [p + t for p in prompts for t in self.negative]

    def _direction(self, pairs: Tensor) -> Tensor:
        """[d] from differences [N, d]."""
        import torch

        mean: Tensor = pairs.mean(0)
        if self.estimate == "mean":
            return mean
        component: Tensor = torch.linalg.svd(pairs.double(), full_matrices=False).Vh[0].to(mean.dtype)
        return component * torch.dot(mean, component)  # the sign of a component is arbitrary; the mean's is not


class SaeLatentMethod(SteeringMethod):
    """The decoder direction of one latent of the cell's SAE, with norm one, at the SAE's layer."""

    method: Literal["sae_latent"] = "sae_latent"
    measures_norms: ClassVar[bool] = True
    latent: Annotated[int, Field(ge=0)]
    """Number of the latent."""

    @model_validator(mode="after")
    def _layer_of_sae(self) -> Any:
        if self.layers != "all":
            raise ValueError("the layer of an SAE latent is that of the SAE")
        return self

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"decoder direction of latent {self.latent}"

    def make(self, lab: StageContext) -> Content:
        """Raises InvalidInput where there is no such latent, or the SAE reads what is not the residual stream."""
        from latentbench.core.errors import InvalidInput
        from latentbench.steering.build import content_of, neutral_texts, residual_norms, unit

        sae, site = lab.sae, next(iter(lab.saes()))
        rows = sae.decoder_rows()
        if rows is None or self.latent >= len(rows):
            raise InvalidInput(f"sae_latent: there is no latent {self.latent}; the dictionary width is {sae.width}")
        # What attention or MLP add has the residual stream's directions; what enters a block leaves the one before.
        layer = site.index - (site.point == "resid_pre")
        if layer < 0:
            raise InvalidInput("sae_latent: no block ends where an SAE of the input of block 0 reads")
        norms = residual_norms(lab.model(), (layer,), neutral_texts(lab))
        return content_of({layer: unit(rows[self.latent].detach().float().cpu())}, norms)


def _states(lm: Any, layers: tuple[int, ...], texts: list[str], token: str) -> dict[int, Tensor]:
    """Layer to the texts' states [N, d], in float32 on the CPU."""
    import torch

    from latentbench.steering.build import residuals

    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in residuals(lm, layers, texts):
        weights = batch.real.double() / batch.real.sum(1, keepdim=True).clamp_min(1)
        for layer, states in batch.states.items():
            mean = (weights[..., None] * states.double()).sum(1)
            found[layer].append((states[:, -1].double() if token == "last" else mean).float().cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}
