"""The base of what a spec can say about an SAE, the parts that several variants share, and `load:` in place of a variant.

A variant plugs in with one options class (through the entry-point group `latentbench.variants`) and one torch class that
it names in `implementation`. `base:` is for variants that start from another SAE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from latentbench.core.plugins import Choice, implementation
from latentbench.core.spec_model import Json, SpecModel, without_default
from latentbench.sae.sources.base import SaeSource

if TYPE_CHECKING:
    import torch

    from latentbench.sae.autoencoder import SparseAutoencoder

Share = Annotated[float, Field(ge=0, le=1)]
Activation = Literal["top_k", "thresholds", "other"]
"""How the latents of one dictionary with a linear encoder are chosen; `other` where an SAE is no such dictionary."""


class Variant(SpecModel):
    """Base of all SAE variants that the harness can make."""

    version: ClassVar[int] = 1
    """Raised by the author when the same options give different weights."""
    implementation: ClassVar[str]
    """`module:class` of the torch side; called as `class(options, d_in, generator, *bases)`."""
    trained: ClassVar[bool] = True
    """False for controls that are made without gradient steps."""
    fitted: ClassVar[bool] = False
    """True for controls that are computed from moments of the hidden states: one pass, no gradient steps."""
    data_parallel: ClassVar[bool] = False
    """Whether it can be trained on several devices: its loss is a mean over tokens, or asks its `group` for the rest."""
    paired: ClassVar[bool] = False
    """Whether it reads what an MLP is given and predicts what that adds, so that its site is an `mlp`."""
    budgeted: ClassVar[bool] = False
    """Whether `encode` accepts any budget ≤ `max_budget`."""
    selects: ClassVar[Activation | None] = None
    """`activation` of variants of which all are alike."""
    scalars: ClassVar[int] = 1
    """Numbers that a latent has beside its rows: a bias, and what thresholds and gates add."""

    variant: str

    @property
    def reads_texts(self) -> bool:
        """Whether hidden states of training texts are needed to make it."""
        return self.trained or self.fitted

    @property
    def max_budget(self) -> int | None:
        """Largest number of active latents per token, where the variant fixes one."""
        return None

    @property
    def base_sections(self) -> tuple[Any, ...]:
        """The SAEs this one starts from, as the spec has them; loaded, they are passed to `build` in this order."""
        return ()

    @property
    def latents(self) -> int | None:
        """Number of latents, those of its bases included; None where it is only known later."""
        return None

    @property
    def activation(self) -> Activation | None:
        """What it is for variants that train a base on; None where that is only known later."""
        return self.selects

    @property
    def foldable(self) -> bool:
        """Whether every latent may have a threshold above zero, which its decoder row can be scaled by."""
        return self.activation in ("thresholds", None)

    def check_d_in(self, d_in: int) -> None:
        """Raises ValueError when it cannot be made over hidden states of `d_in` dimensions."""

    def build(
        self, d_in: int, generator: torch.Generator, bases: tuple[SparseAutoencoder, ...] = ()
    ) -> SparseAutoencoder:
        """A fresh SAE over `d_in` dimensions, initialised from `generator`, on top of `bases` where it needs them."""
        made: SparseAutoencoder = implementation(self.implementation)(self, d_in, generator, *bases)
        return made


class Dictionary(Variant):
    """A variant with a dictionary of `width` latents."""

    width: PositiveInt
    """Dictionary width: number of latents."""

    @property
    def latents(self) -> int | None:
        return self.width


class ActiveLatents(Dictionary):
    """A dictionary of which k latents are active."""

    k: PositiveInt
    """Active latents per token."""

    @model_validator(mode="after")
    def _k_fits(self) -> Any:
        check_fits("k", self.k, self.width)
        return self


class AuxiliaryLoss(Variant):
    """A variant that revives dead latents with the AuxK loss (Gao et al. 2024, arXiv 2406.04093, App. A.2)."""

    aux_coefficient: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of the AuxK loss on dead latents."""
    aux_k: PositiveInt | None = None
    """Dead latents that reconstruct the error; default the power of two nearest to d_in / 2, at most 512."""
    aux_loss: Literal["plain", "normalised"] = "plain"
    """The squared error of AuxK as it is, or times the variance of what is reconstructed over that of the error left, as
    Gao et al.'s code has it: revival then weighs as much late in training as early."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), ("aux_loss",), made(self))


class AuxiliaryK(AuxiliaryLoss, Dictionary):
    """A dictionary with AuxK."""


def check_fits(name: str, active: int, width: int) -> None:
    """Raises ValueError when more latents should be active than exist."""
    if active > width:
        raise ValueError(f"{name} = {active} active latents cannot exceed the dictionary width {width}")


class LoadedSae(SpecModel):
    """An SAE that was trained elsewhere."""

    load: Annotated[SaeSource, Choice("sources", "adapter")]
    """Where it comes from."""

    def at(self, block: int) -> LoadedSae:
        """Itself with `{layer}` in every text replaced by the number of a block."""
        named = {
            name: value.replace("{layer}", str(block))
            for name in type(self.load).model_fields
            if isinstance(value := getattr(self.load, name), str) and "{layer}" in value
        }
        return self if not named else self.model_copy(update={"load": self.load.model_copy(update=named)})


def _parse_base(value: Any) -> Any:
    """The model that a map in a spec stands for; what is wrong in it is reported at its place in the spec."""
    if isinstance(value, SpecModel):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be an SAE: {variant: …} or {load: …}")
    return _SAES.read(value)


_SAES = Choice("variants", "variant", load=LoadedSae)
Base = Annotated[Any, BeforeValidator(_parse_base)]
"""An SAE to start from: a section as under `sae:`, `{variant: …}` or `{load: …}`."""
