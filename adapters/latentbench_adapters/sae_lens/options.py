"""Variants that sae-lens trains well already and that are trained here through its own training classes.

The loop, the data order, the seeds and the resumption are the harness's: sae-lens ignores its configured seed and does
not resume exactly, so only its architectures and losses are used.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from latentbench.core.spec_model import Json
from latentbench.sae.options import Activation, Dictionary, Share


class SaeLensOptions(Dictionary):
    """What all variants trained by sae-lens share."""

    implementation: ClassVar[str] = "latentbench_adapters.sae_lens.saes:TrainedBySaeLens"
    selects: ClassVar[Activation] = "thresholds"
    architecture: ClassVar[str]
    """The name under which sae-lens registers its training class."""

    penalty_warmup: Share = 0.1
    """Share of the steps in which the sparsity penalty rises linearly."""
    decoder_norm: PositiveFloat = 0.1
    """Norm of the decoder rows at initialisation."""

    def config(self) -> dict[str, Json]:
        """Fields of sae-lens' training configuration, apart from sizes and warm-up."""
        return {"decoder_init_norm": self.decoder_norm}


class SaeLensStandardOptions(SaeLensOptions):
    """ReLU latents with an L1 penalty weighted by the decoder norms."""

    architecture: ClassVar[str] = "standard"

    variant: Literal["sae_lens_standard"] = "sae_lens_standard"
    l1: Annotated[float, Field(ge=0)]
    """Coefficient of the L1 penalty."""

    def config(self) -> dict[str, Json]:
        return {**super().config(), "l1_coefficient": self.l1}


class SaeLensGatedOptions(SaeLensOptions):
    """Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014): one path selects, the other measures."""

    architecture: ClassVar[str] = "gated"
    scalars: ClassVar[int] = 3

    variant: Literal["sae_lens_gated"] = "sae_lens_gated"
    l1: Annotated[float, Field(ge=0)]
    """Coefficient of the L1 penalty on the gate."""

    def config(self) -> dict[str, Json]:
        return {**super().config(), "l1_coefficient": self.l1}


class SaeLensJumpReluOptions(SaeLensOptions):
    """JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435): a learned threshold per latent."""

    architecture: ClassVar[str] = "jumprelu"
    scalars: ClassVar[int] = 2

    variant: Literal["sae_lens_jumprelu"] = "sae_lens_jumprelu"
    l0: Annotated[float, Field(ge=0)]
    """Coefficient of the L0 penalty."""
    target_l0: PositiveFloat | None = None
    """Wanted active latents per token: the penalty is then quadratic in the distance to it, otherwise linear in L0."""
    threshold: PositiveFloat = 0.01
    """Threshold at initialisation."""
    bandwidth: PositiveFloat = 0.05
    """Width of the straight-through estimator's kernel."""

    def config(self) -> dict[str, Json]:
        mode = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": self.target_l0} if self.target_l0 else {}
        thresholds = {"jumprelu_init_threshold": self.threshold, "jumprelu_bandwidth": self.bandwidth}
        return {**super().config(), "l0_coefficient": self.l0, **thresholds, **mode}
