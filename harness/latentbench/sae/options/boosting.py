"""Options of boosted SAEs and of the baselines they are compared with (SAE Boost, arXiv 2507.12990)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.sae.options.base import (
    Activation,
    ActiveLatents,
    AuxiliaryK,
    AuxiliaryLoss,
    Base,
    LoadedSae,
    Variant,
    check_fits,
)
from latentbench.sae.options.topk import Momentum


class OnBase(Variant):
    """A variant that starts from another SAE of the same layer of the same model."""

    base: Base
    """The SAE it starts from: a section as under `sae:`, `{variant: …}` or `{load: …}`."""

    @property
    def base_sections(self) -> tuple[Any, ...]:
        return (self.base,)

    @property
    def base_latents(self) -> int | None:
        """Latents of the base; None where it is loaded."""
        return self.base.latents if isinstance(self.base, Variant) else None


class BoostedOptions(OnBase, AuxiliaryK, ActiveLatents):
    """A residual SAE that reads x and predicts the base's error, without decoder bias; the base stays frozen."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.sae.variants.boosting:Boosted"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True

    variant: Literal["boosted"] = "boosted"
    width: PositiveInt = 1024
    """Latents of the residual SAE."""
    k: PositiveInt = 5
    """Active latents of the residual SAE per token (on average, with batch_topk)."""
    selection: Literal["topk", "batch_topk"] = "batch_topk"
    """Whether the strongest latents of every token or of the whole batch are active."""
    threshold_momentum: Momentum = 0.01
    """Least share of the running threshold that each batch replaces (batch_topk)."""

    @property
    def latents(self) -> int | None:
        return None if self.base_latents is None else self.base_latents + self.width

    @property
    def foldable(self) -> bool:
        return self.selection == "batch_topk"


class EnsembleOptions(Variant):
    """Several boosted SAEs of one base together: x̂ = base + Σ residuals, none retrained."""

    implementation: ClassVar[str] = "latentbench.sae.variants.boosting:Ensemble"
    selects: ClassVar[Activation] = "other"
    trained: ClassVar[bool] = False
    handling: ClassVar[frozenset[str]] = frozenset({"domains"})  # names; what stands behind them made the boosts

    variant: Literal["boost_ensemble"] = "boost_ensemble"
    boosts: Annotated[tuple[Base, ...], Field(min_length=1)]
    """The boosted SAEs, each a section as under `sae:`; all must have the same base."""
    domains: tuple[str, ...] = ()
    """Which of `dataset.domains` each boost is trained on, one name per boost; default: all on `dataset.train`."""

    @property
    def base_sections(self) -> tuple[Any, ...]:
        return self.boosts

    @property
    def foldable(self) -> bool:
        return all(boost.foldable for boost in self.boosts if isinstance(boost, Variant))

    @model_validator(mode="after")
    def _boosts_fit(self) -> Any:
        native = [boost for boost in self.boosts if not isinstance(boost, LoadedSae)]
        for boost in native:
            if not isinstance(boost, BoostedOptions):
                raise ValueError(f"the variant {boost.variant!r} cannot stand among the boosts: only `boosted` can")
            if boost.base != native[0].base:
                raise ValueError("all boosts must have the same base: write the same section under each")
        if self.domains and len(self.domains) != len(self.boosts):
            raise ValueError(f"domains names {len(self.domains)} texts for {len(self.boosts)} boosts: one for each")
        return self


class FineTunedOptions(OnBase, AuxiliaryLoss):
    """Baseline: all weights of the base are trained on."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.sae.variants.boosting:FineTuned"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["fine_tuned"] = "fine_tuned"
    k: PositiveInt | None = None
    """Active latents per token; default the base's k. Needed where the base has thresholds: BatchTopK is then used."""
    threshold_momentum: Momentum = 0.01
    """Least share of the running threshold that each batch replaces (base with thresholds)."""

    @property
    def latents(self) -> int | None:
        return self.base_latents

    @property
    def activation(self) -> Activation | None:
        return self.base.activation if isinstance(self.base, Variant) else None

    @property
    def active(self) -> int | None:
        """Active latents per token; None where the loaded base says."""
        return self.k or (self.base.max_budget if isinstance(self.base, Variant) else None)

    @property
    def max_budget(self) -> int | None:
        return self.active if self.activation == "top_k" else None

    def check_base(self, latents: int) -> None:
        """Raises ValueError when a base of so many latents is too small."""
        check_fits("k", self.active or 1, latents)

    @model_validator(mode="after")
    def _base_fits(self) -> Any:
        if self.activation == "other":
            raise ValueError(
                f"the variant {self.base.variant!r} is not one dictionary with a linear encoder, so "
                f"{self.variant!r} cannot start from it"
            )
        if self.activation == "thresholds" and self.k is None:
            raise ValueError("the base has thresholds: say with k how many latents per token BatchTopK keeps active")
        if self.base_latents is not None:
            self.check_base(self.base_latents)
        return self


class ExtendedOptions(FineTunedOptions):
    """Baseline: new latents are appended to the frozen base and trained to reconstruct x; they compete with the old.

    Of a base with thresholds all latents have one new threshold in common.
    """

    implementation: ClassVar[str] = "latentbench.sae.variants.boosting:Extended"

    variant: Literal["extended"] = "extended"  # type: ignore[assignment]
    extra_width: PositiveInt = 1024
    """New latents."""
    extra_k: PositiveInt = 5
    """Active latents per token beyond the base's."""
    init: Literal["random", "most_active"] = "random"
    """New latents start at random, or reading as the base's latents do that fire most on the first batch."""

    @property
    def latents(self) -> int | None:
        return None if self.base_latents is None else self.base_latents + self.extra_width

    @property
    def active(self) -> int | None:
        old = super().active
        return None if old is None else old + self.extra_k

    def check_base(self, latents: int) -> None:
        check_fits("k + extra_k", self.active or self.extra_k, latents + self.extra_width)
        if self.init == "most_active" and self.extra_width > latents:
            raise ValueError(f"extra_width = {self.extra_width}: the base has only {latents} latents to copy")


class StitchedOptions(FineTunedOptions):
    """Baseline: a fine-tuned copy's most changed latents replace the same latents of the base."""

    implementation: ClassVar[str] = "latentbench.sae.variants.boosting:Stitched"

    variant: Literal["stitched"] = "stitched"  # type: ignore[assignment]
    grafted: PositiveInt = 1024
    """Latents taken from the fine-tuned copy; at most the base's width."""

    def check_base(self, latents: int) -> None:
        super().check_base(latents)
        if self.grafted > latents:
            raise ValueError(f"grafted = {self.grafted}: the base has only {latents} latents")
