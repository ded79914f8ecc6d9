"""Options of boosted SAEs and of the baselines they are compared with (SAE Boost, arXiv 2507.12990)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from harness.sae.options.base import ActiveLatents, AuxiliaryK, AuxiliaryLoss, Variant
from harness.sae.options.loaded import Base
from harness.sae.options.topk import Momentum


class OnBase(Variant):
    """A variant that starts from another SAE of the same layer of the same model."""

    base: Base
    """The SAE it starts from: a section as under `sae:`, `{variant: …}` or `{load: …}`."""

    @property
    def base_sections(self) -> tuple[Any, ...]:
        return (self.base,)


class BoostedOptions(OnBase, AuxiliaryK, ActiveLatents):
    """A residual SAE that reads x and predicts the base's error, without decoder bias; the base stays frozen."""

    implementation: ClassVar[str] = "harness.sae.variants.boosted:Boosted"
    data_parallel: ClassVar[bool] = True

    variant: Literal["boosted"] = "boosted"
    width: PositiveInt = 1024
    """Latents of the residual SAE."""
    k: PositiveInt = 5
    """Active latents of the residual SAE per token (on average, with batch_topk)."""
    selection: Literal["topk", "batch_topk"] = "batch_topk"
    """Whether the strongest latents of every token or of the whole batch are active."""
    threshold_momentum: Momentum = 0.01
    """Share of the running threshold that each batch replaces (batch_topk)."""


class EnsembleOptions(Variant):
    """Several boosted SAEs of one base together: x̂ = base + Σ residuals, none retrained."""

    implementation: ClassVar[str] = "harness.sae.variants.boosted:Ensemble"
    trained: ClassVar[bool] = False

    variant: Literal["boost_ensemble"] = "boost_ensemble"
    boosts: tuple[Base, ...]
    """The boosted SAEs, each a section as under `sae:`; all must have the same base."""

    @property
    def base_sections(self) -> tuple[Any, ...]:
        return self.boosts


class FineTunedOptions(OnBase, AuxiliaryLoss):
    """Baseline: all weights of the base are trained on."""

    implementation: ClassVar[str] = "harness.sae.variants.tuned:FineTuned"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["fine_tuned"] = "fine_tuned"
    k: PositiveInt | None = None
    """Active latents per token; default the base's k. Needed where the base has thresholds: BatchTopK is then used."""
    threshold_momentum: Momentum = 0.01
    """Share of the running threshold that each batch replaces (base with thresholds)."""


class ExtendedOptions(FineTunedOptions):
    """Baseline: new latents are appended to the frozen base and trained to reconstruct x; they compete with the old."""

    implementation: ClassVar[str] = "harness.sae.variants.tuned:Extended"

    variant: Literal["extended"] = "extended"  # type: ignore[assignment]
    extra_width: PositiveInt = 1024
    """New latents."""
    extra_k: PositiveInt = 5
    """Active latents per token beyond the base's."""
    init: Literal["random", "most_active"] = "random"
    """New latents start at random or as copies of the base's latents that fire most on the first batch."""


class StitchedOptions(FineTunedOptions):
    """Baseline: a fine-tuned copy's most changed latents replace the same latents of the base."""

    implementation: ClassVar[str] = "harness.sae.variants.tuned:Stitched"

    variant: Literal["stitched"] = "stitched"  # type: ignore[assignment]
    grafted: PositiveInt = 1024
    """Latents taken from the fine-tuned copy; at most the base's width."""
