"""Options of the controls that stand beside every claim."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from latentbench.sae.options.base import Activation, ActiveLatents, Variant
from latentbench.sae.options.topk import TopKOptions


class IdentityOptions(Variant):
    """Upper bound: returns the hidden state unchanged."""

    implementation: ClassVar[str] = "latentbench.sae.variants.controls:Identity"
    selects: ClassVar[Activation] = "other"
    trained: ClassVar[bool] = False

    variant: Literal["identity"] = "identity"


class MeanOptions(Variant):
    """Lower bound: always the mean hidden state of the training tokens."""

    implementation: ClassVar[str] = "latentbench.sae.variants.controls:Mean"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    fitted: ClassVar[bool] = True

    variant: Literal["mean"] = "mean"

    @property
    def latents(self) -> int:
        return 1


class PCAOptions(Variant):
    """The first k principal components of the training tokens' hidden states: the best k-dimensional linear map."""

    implementation: ClassVar[str] = "latentbench.sae.variants.controls:PCA"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    fitted: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["pca"] = "pca"
    k: PositiveInt
    """Number of components, all of them active; at most d_in."""

    @property
    def max_budget(self) -> int:
        return self.k

    @property
    def latents(self) -> int:
        return self.k

    def check_d_in(self, d_in: int) -> None:
        if self.k > d_in:
            raise ValueError(f"k = {self.k} principal components do not exist in {d_in} dimensions")


class RandomDecoderOptions(TopKOptions):
    """TopK with a frozen random unit decoder (Korznikov et al. 2026, arXiv 2602.14111); only the encoder learns."""

    implementation: ClassVar[str] = "latentbench.sae.variants.controls:RandomDecoder"

    variant: Literal["random_decoder"] = "random_decoder"  # type: ignore[assignment]


class UntrainedOptions(ActiveLatents):
    """TopK as initialised, with the decoder bias at the mean hidden state."""

    implementation: ClassVar[str] = "latentbench.sae.variants.controls:Untrained"
    selects: ClassVar[Activation] = "top_k"
    data_parallel: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    fitted: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["untrained"] = "untrained"

    @property
    def max_budget(self) -> int:
        return self.k
