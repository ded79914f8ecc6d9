"""One number of one metric, as records hold it. A number that could not be computed is null with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from latentbench.core.spec_model import Json, SpecModel, without_default


class Interval(SpecModel):
    """A confidence interval."""

    low: float
    high: float
    level: float = 0.95
    method: str
    """How it was computed, e.g. `document bootstrap, expanded percentile`."""


class MetricValue(SpecModel):
    """One number of one metric on one domain."""

    id: str
    """Metric and estimator, e.g. `explained_variance.centred`."""
    version: int
    """Version of the metric's definition; numbers of different versions are never ranked together."""
    domain: str | None = None
    """Evaluation domain; null for numbers that belong to the artifact itself."""
    value: float | None
    null_reason: str | None = None
    """Why the value is null."""
    unit: str
    higher_is_better: bool | None
    """Null where neither direction is better in itself (L0)."""
    n: int | None = None
    """Number of distinct documents (or other independent units) behind the number."""
    repeats: Annotated[int, Field(ge=0)] = 0
    """How many more were measured that repeat one of those and count with it; left out where none does."""
    ci: Interval | None = None
    params: dict[str, Json] = Field(default_factory=dict)
    """What distinguishes this number from others of the same id, e.g. `{"budget": 8}`."""

    trained_k: PositiveInt | None = None
    """Active latents per token that the SAE was trained with, where the budget exceeds them; left out elsewhere."""

    @property
    def budget(self) -> int | None:
        """Active latents per token it was measured with; None for as many as the SAE was trained with."""
        budget = self.params.get("budget")
        return budget if isinstance(budget, int) else None

    @property
    def settings(self) -> str:
        """Its parameters other than the budget as text."""
        return settings_text(self.params)

    @model_serializer(mode="wrap")
    def _without_rarities(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Records of documents that all differ, measured within what was trained, are what they were."""
        return without_default(type(self), ("trained_k", "repeats"), made(self))


def settings_text(params: Mapping[str, Json]) -> str:
    """Parameters other than the budget as text, e.g. `judge=lexical,tokens=30000`."""
    return ",".join(f"{k}={v}" for k, v in sorted(params.items()) if k != "budget")
