"""How an SAE is trained (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from latentbench.core.spec_model import Json, SpecModel, without_default

TRAINING_FILE = "training.json"
"""Beside an SAE's weights, where it was trained: the curve and what training took."""
TOKENS_PER_DEVICE = 32
"""Least share of a batch, on average: a random share of it is then empty less than once in 10^13 steps and devices."""


class Budget(SpecModel):
    """Training for as many operations as another spec's run needs (KronSAE, arXiv 2505.22255, §4)."""

    flops_of: Annotated[str, Field(min_length=1, max_length=300)]
    """Path of the other spec, relative to this file."""
    label: str | None = None
    """Which of its experiments, where it has several."""
    d_model: PositiveInt | None = None
    """Dimensions of the model's hidden states, for machines on which the model's configuration is not; where it is, the two
    must agree."""

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """`d_model` is newer than records."""
        return without_default(type(self), ("d_model",), made(self))


class TrainingOptions(SpecModel):
    """Recipe shared by all trained variants; defaults follow KronSAE (arXiv 2505.22255, App. A.1).

    What that paper leaves open is fixed here and recorded: input normalisation, gradient clipping, dead threshold.
    """

    version: ClassVar[int] = 2
    """Raised when the same options give different weights."""
    handling: ClassVar[frozenset[str]] = frozenset({"budget", "devices"})

    batch: PositiveInt = 4096
    """Tokens per optimiser step (steps of one shuffle block differ by at most one token)."""
    lr: PositiveFloat = 8e-4
    """Peak learning rate of Adam."""
    final_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end of the decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls from `lr` to `final_lr`: along half a cosine, a line, or not at all."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the steps, the last ones, in which it falls; 1: in all after the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of Adam's moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, times the learning rate in every step (KronSAE: 0.01); 0 is Adam."""
    gradient_clip: PositiveFloat | None = 1.0
    """Largest global gradient norm; null for none."""
    normalise: bool = True
    """Scale inputs so that their mean norm is sqrt(d_in); folded into the weights at the end."""
    dead_after: PositiveInt | None = None
    """Tokens without firing after which a latent counts as dead; default min(10 million, a tenth of the tokens)."""
    buffer: PositiveInt = 131_072
    """Tokens that are shuffled together before they are cut into batches."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the large matrix products of a step. Weights, moments, selection and sparse products are float32 in any case."""

    devices: PositiveInt = 1
    """Train on so many devices at a time, each on its share of every batch: `cuda:0` and up, or processes on the CPU. On a Ray
    cluster they may be those of several nodes. In no key: numbers are the same but for rounding."""

    budget: Budget | None = None
    """Sets dataset.train.tokens so that training costs as much as another spec's; default: the tokens stated."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), ("weight_decay", "schedule", "decay", "precision"), made(self))

    @model_validator(mode="after")
    def _constant_does_not_fall(self) -> Any:
        if self.schedule == "constant" and self.decay < 1:
            raise ValueError(f"a constant learning rate has no decay: leave out decay = {self.decay:g} or the schedule")
        return self

    @model_validator(mode="after")
    def _buffer_holds_a_batch(self) -> Any:
        if self.buffer < self.batch:
            raise ValueError(f"the shuffle buffer ({self.buffer} tokens) must hold a batch ({self.batch} tokens)")
        return self

    @model_validator(mode="after")
    def _devices_have_tokens(self) -> Any:
        if self.devices > 1 and self.batch < (least := TOKENS_PER_DEVICE * self.devices):
            raise ValueError(f"{self.devices} devices share a batch of at least {least} tokens, not {self.batch}")
        return self
