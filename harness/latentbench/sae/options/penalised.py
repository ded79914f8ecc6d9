"""Options of variants that are trained with a sparsity penalty: JumpReLU, Gated, standard L1 and p-annealed L1.

Penalties are in units of the hidden states' mean squared norm, as in the papers, which train on inputs of unit norm.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from latentbench.sae.options.base import Activation, Dictionary, Share


class Penalised(Dictionary):
    """A variant with a sparsity penalty that warms up."""

    budgeted: ClassVar[bool] = True
    selects: ClassVar[Activation] = "thresholds"
    sparsity_warmup: Share = 0.1
    """Share of the steps in which the penalty rises linearly from zero."""


class StandardOptions(Penalised):
    """ReLU with an L1 penalty weighted by decoder norms (Bricken et al. 2023; Anthropic, April 2024 update)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.penalised:Standard"
    data_parallel: ClassVar[bool] = True

    variant: Literal["standard"] = "standard"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1e-2
    """Weight of the L1 norm of activations for hidden states of unit norm."""

    @property
    def foldable(self) -> bool:
        return False


class PAnnealOptions(Penalised):
    """ReLU with an Lᵖ penalty Σ zᵖ whose p falls from 1 during training (Karvonen et al. 2024, arXiv 2408.00113).

    It is L1 at first and comes near to counting active latents. With every fall the penalty's weight is changed such that the
    penalty of the latest batches stays what it was.
    """

    implementation: ClassVar[str] = "latentbench.sae.variants.penalised:PAnneal"
    data_parallel: ClassVar[bool] = True

    variant: Literal["p_anneal"] = "p_anneal"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1e-2
    """Weight of the penalty while p is 1, for hidden states of unit norm."""
    p_end: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The last p."""
    anneal_start: Share = 0.1
    """Share of the steps after which p begins to fall."""
    updates: PositiveInt = 10
    """How often p falls, by the same amount each time."""
    queue: PositiveInt = 10
    """Latest batches over which the penalties before and after a fall are compared."""

    @property
    def foldable(self) -> bool:
        return False


class GatedOptions(Penalised):
    """A gate decides which latents are active, a second path how strongly (Rajamanoharan et al. 2024, 2404.16014)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.penalised:Gated"
    scalars: ClassVar[int] = 3
    data_parallel: ClassVar[bool] = True

    variant: Literal["gated"] = "gated"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1e-2
    """Weight of the L1 norm of the gate's positive pre-activations for hidden states of unit norm."""

    @property
    def foldable(self) -> bool:
        return False


class Thresholded(Penalised):
    """A variant with learned thresholds and an L0 penalty (Rajamanoharan et al. 2024, 2407.14435)."""

    l0_coefficient: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the L0 penalty for hidden states of unit norm."""
    target_l0: PositiveFloat | None = None
    """Active latents per token to aim at: the penalty is then coefficient · target · (L0 / target − 1)²."""
    bandwidth: PositiveFloat = 1e-3
    """Width of the kernel that gives thresholds their gradient, for hidden states of unit mean square."""
    initial_threshold: PositiveFloat = 1e-3
    """Threshold of every latent at the start, for hidden states of unit mean square."""

    @model_validator(mode="after")
    def _target_fits(self) -> Any:
        if self.target_l0 is not None and self.target_l0 > self.width:
            raise ValueError(f"target_l0 = {self.target_l0} cannot exceed the dictionary width {self.width}")
        return self


class JumpReLUOptions(Thresholded):
    """Learned thresholds with an L0 penalty and straight-through gradients (Rajamanoharan et al. 2024, 2407.14435)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.penalised:JumpReLU"
    scalars: ClassVar[int] = 2
    data_parallel: ClassVar[bool] = True

    variant: Literal["jumprelu"] = "jumprelu"
