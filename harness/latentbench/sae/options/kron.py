"""Options of KronSAE, selected by rank (also with nested groups, as in Matryoshka SAEs) or by thresholds (as in JumpReLU)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentbench.core.spec_model import Json, without_default
from latentbench.sae.options.base import Activation, ActiveLatents, AuxiliaryK, Dictionary
from latentbench.sae.options.penalised import Thresholded
from latentbench.sae.options.topk import Momentum, check_budgets, check_groups


class PairedLatents(Dictionary):
    """Latents that are pairwise products within heads."""

    heads: PositiveInt | None = None
    """Number of heads h; default width / (m·n)."""
    m: PositiveInt = 4
    """Base rows per head."""
    n: PositiveInt = 8
    """Extension rows per head; m ≤ n in the paper."""
    kernel: Literal["mand", "relu_product", "product"] = "mand"
    """How a pair's pre-activations u, v combine: mAND √(u v) where both are positive, ReLU(u) ReLU(v), or u v."""

    @property
    def head_count(self) -> int:
        """Number of heads h."""
        return self.width // (self.m * self.n)

    @model_validator(mode="after")
    def _heads_fit(self) -> Any:
        if self.width % (self.m * self.n):
            raise ValueError(f"m·n = {self.m}·{self.n} = {self.m * self.n} does not divide the width {self.width}")
        if self.heads is not None and self.heads * self.m * self.n != self.width:
            made = self.heads * self.m * self.n
            raise ValueError(f"heads·m·n = {self.heads}·{self.m}·{self.n} = {made} is not the width {self.width}")
        return self


class KronOptions(AuxiliaryK, PairedLatents, ActiveLatents):
    """Latents as pairwise products within heads: an encoder of h(m + n) instead of h·m·n rows (arXiv 2505.22255)."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.sae.variants.kron:Kron"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["kron"] = "kron"
    selection: Literal["topk", "batch_topk", "hierarchical"] = "topk"
    """Per token, over the batch, or per token with the loss averaged over budgets."""
    budgets: tuple[PositiveInt, ...] | None = None
    """Budgets of the hierarchical loss; default every one from 1 to k."""
    threshold_momentum: Momentum = 0.01
    """Least share of the running threshold that each batch replaces (batch_topk)."""

    groups: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Sizes of nested groups of whole heads, first to last, adding up to `width`: the first latents reconstruct by themselves
    too, as in a Matryoshka SAE."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), ("aux_loss", "groups"), made(self))

    @property
    def max_budget(self) -> int | None:
        return None if self.selection == "batch_topk" else self.k

    @model_validator(mode="after")
    def _fits(self) -> Any:
        check_budgets(self.budgets, self.k)
        if self.budgets is not None and self.selection != "hierarchical":
            raise ValueError(f"budgets need selection: hierarchical, not {self.selection}")
        if self.groups is not None:
            self._check_groups(self.groups)
        return self

    def _check_groups(self, groups: tuple[int, ...]) -> None:
        check_groups(groups, self.width)
        if self.selection == "hierarchical":
            raise ValueError("groups need selection: topk or batch_topk, not hierarchical")
        if cut := [size for size in groups if size % (self.m * self.n)]:
            raise ValueError(f"a group of {cut[0]} latents cuts a head: take multiples of m·n = {self.m * self.n}")


class KronJumpReLUOptions(Thresholded, PairedLatents):
    """KronSAE's pairwise products (arXiv 2505.22255) with learned thresholds and an L0 penalty (JumpReLU, 2407.14435)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.kron:KronJumpReLU"
    selects: ClassVar[Activation] = "other"
    scalars: ClassVar[int] = 2
    data_parallel: ClassVar[bool] = True

    variant: Literal["kron_jumprelu"] = "kron_jumprelu"
