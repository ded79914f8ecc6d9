"""Options of the TopK family: TopK, AbsTopK, Multi-TopK, BatchTopK, HierarchicalTopK and Matryoshka."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.sae.options.base import Activation, ActiveLatents, AuxiliaryK, check_fits

Momentum = Annotated[float, Field(gt=0, le=1)]


class TopKOptions(AuxiliaryK, ActiveLatents):
    """The k largest pre-activations per token (Gao et al. 2024, arXiv 2406.04093), with AuxK for dead latents."""

    implementation: ClassVar[str] = "latentbench.sae.variants.topk:TopK"
    selects: ClassVar[Activation] = "top_k"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["topk"] = "topk"

    @property
    def max_budget(self) -> int:
        return self.k


class AbsTopKOptions(AuxiliaryK, ActiveLatents):
    """The k pre-activations of largest magnitude per token, with their signs (AbsTopK, arXiv 2510.00404), with AuxK.

    A latent then stands for a direction and its opposite.
    """

    implementation: ClassVar[str] = "latentbench.sae.variants.topk:AbsTopK"
    # Its encoder is linear, but its codes are signed: not what other variants train on.
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["abs_topk"] = "abs_topk"

    @property
    def max_budget(self) -> int:
        return self.k


class MultiTopKOptions(AuxiliaryK, ActiveLatents):
    """TopK that also learns to use more latents: L(k) + L(4k) / 8 (Multi-TopK, Gao et al. 2024, arXiv 2406.04093)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.topk:MultiTopK"
    selects: ClassVar[Activation] = "top_k"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["multi_topk"] = "multi_topk"
    multiple: Annotated[int, Field(ge=2)] = 4
    """The further loss is that of so many times k active latents."""
    multiple_weight: Annotated[float, Field(ge=0)] = 1 / 8
    """Weight of the further loss."""

    @property
    def max_budget(self) -> int:
        return self.multiple * self.k

    @model_validator(mode="after")
    def _multiple_fits(self) -> Any:
        check_fits("multiple · k", self.multiple * self.k, self.width)
        return self


class BatchTopKOptions(AuxiliaryK, ActiveLatents):
    """The strongest batch · k pre-activations of a batch (Bussmann et al. 2024, arXiv 2412.06410), with AuxK.

    After training a global threshold takes over: the running mean of the smallest selected activation.
    """

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.sae.variants.topk:BatchTopK"
    selects: ClassVar[Activation] = "thresholds"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["batch_topk"] = "batch_topk"
    k: PositiveInt
    """Active latents per token on average."""
    threshold_momentum: Momentum = 0.01
    """Least share of the running threshold that each batch replaces."""


class HierarchicalTopKOptions(AuxiliaryK, ActiveLatents):
    """One SAE for every budget up to k: the loss averages over budgets (HierarchicalTopK, arXiv 2505.24473)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.topk:HierarchicalTopK"
    selects: ClassVar[Activation] = "top_k"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["hierarchical_topk"] = "hierarchical_topk"
    k: PositiveInt
    """Largest number of active latents per token."""
    budgets: tuple[PositiveInt, ...] | None = None
    """Budgets that the loss averages over; default every one from 1 to k."""

    @property
    def max_budget(self) -> int:
        return self.k

    @model_validator(mode="after")
    def _fits(self) -> Any:
        check_budgets(self.budgets, self.k)
        return self


class MatryoshkaOptions(AuxiliaryK, ActiveLatents):
    """Nested dictionaries: every prefix of the latents reconstructs too (Matryoshka SAE, arXiv 2503.17547)."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.sae.variants.topk:Matryoshka"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["matryoshka"] = "matryoshka"
    k: PositiveInt
    """Active latents per token (on average, with batch_topk)."""
    groups: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Sizes of the groups of latents, first to last; they add up to `width`."""
    selection: Literal["topk", "batch_topk"] = "batch_topk"
    """Whether the strongest latents of every token or of the whole batch are active."""
    threshold_momentum: Momentum = 0.01
    """Least share of the running threshold that each batch replaces (batch_topk)."""

    @property
    def max_budget(self) -> int | None:
        return self.k if self.selection == "topk" else None

    @property
    def activation(self) -> Activation:
        return "top_k" if self.selection == "topk" else "thresholds"

    @model_validator(mode="after")
    def _fits(self) -> Any:
        check_groups(self.groups, self.width)
        return self


def check_groups(groups: tuple[int, ...], width: int) -> None:
    """Raises ValueError when nested groups do not make up the dictionary."""
    if sum(groups) != width:
        raise ValueError(f"the groups add up to {sum(groups)} latents, not to the width {width}")


def check_budgets(budgets: tuple[int, ...] | None, k: int) -> None:
    """Raises ValueError when budgets are empty, repeated or larger than k."""
    if budgets is None:
        return
    if not budgets or len(set(budgets)) != len(budgets):
        raise ValueError("budgets must be one or more different numbers of active latents")
    if max(budgets) > k:
        raise ValueError(f"budget {max(budgets)} exceeds k = {k}, the largest number of active latents")
