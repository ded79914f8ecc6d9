"""Options of variants that are trained with a sparsity penalty: JumpReLU, Gated and standard L1.

Penalties are in units of the hidden states' mean squared norm, as in the papers, which train on inputs of unit norm.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

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


class JumpReLUOptions(Penalised):
    """Learned thresholds with an L0 penalty and straight-through gradients (Rajamanoharan et al. 2024, 2407.14435)."""

    implementation: ClassVar[str] = "latentbench.sae.variants.penalised:JumpReLU"
    scalars: ClassVar[int] = 2
    data_parallel: ClassVar[bool] = True

    variant: Literal["jumprelu"] = "jumprelu"
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
