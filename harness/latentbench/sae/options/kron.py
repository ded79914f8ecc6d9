"""Options of KronSAE."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt, model_validator

from latentbench.sae.options.base import Activation, ActiveLatents, AuxiliaryK
from latentbench.sae.options.topk import Momentum, check_budgets


class KronOptions(AuxiliaryK, ActiveLatents):
    """Latents as pairwise products within heads: an encoder of h(m + n) instead of h·m·n rows (arXiv 2505.22255)."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.sae.variants.kron:Kron"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["kron"] = "kron"
    heads: PositiveInt | None = None
    """Number of heads h; default width / (m·n)."""
    m: PositiveInt = 4
    """Base rows per head."""
    n: PositiveInt = 8
    """Extension rows per head; m ≤ n in the paper."""
    kernel: Literal["mand", "relu_product", "product"] = "mand"
    """How a pair's pre-activations u, v combine: mAND √(u v) where both are positive, ReLU(u) ReLU(v), or u v."""
    selection: Literal["topk", "batch_topk", "hierarchical"] = "topk"
    """Per token, over the batch, or per token with the loss averaged over budgets."""
    budgets: tuple[PositiveInt, ...] | None = None
    """Budgets of the hierarchical loss; default every one from 1 to k."""
    threshold_momentum: Momentum = 0.01
    """Least share of the running threshold that each batch replaces (batch_topk)."""

    @property
    def head_count(self) -> int:
        """Number of heads h."""
        return self.width // (self.m * self.n)

    @property
    def max_budget(self) -> int | None:
        return None if self.selection == "batch_topk" else self.k

    @model_validator(mode="after")
    def _fits(self) -> Any:
        check_budgets(self.budgets, self.k)
        if self.width % (self.m * self.n):
            raise ValueError(f"m·n = {self.m}·{self.n} = {self.m * self.n} does not divide the width {self.width}")
        if self.heads is not None and self.heads * self.m * self.n != self.width:
            made = self.heads * self.m * self.n
            raise ValueError(f"heads·m·n = {self.heads}·{self.m}·{self.n} = {made} is not the width {self.width}")
        if self.budgets is not None and self.selection != "hierarchical":
            raise ValueError(f"budgets need selection: hierarchical, not {self.selection}")
        return self
