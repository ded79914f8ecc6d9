"""`auto` under `steering:`: layers, dose or scale are tried on selection data, and one point of them is chosen by a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from latentbench.core.plugins import Choice
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.sites import Layer
from latentbench.core.spec_model import Json, SpecModel
from latentbench.metrics.base import Estimator, Metric
from latentbench.study.study import Study

Auto = Literal["auto"]
SWEPT = ("layers", "dose", "scale")
"""Fields that may be `auto`."""
CHOICE_VERSION = 1
"""Raised when the same measured points give another choice."""
SWEEP_VERSION = 1
"""Raised when the same candidates and selection data give other measured points."""

Strengths = Annotated[tuple[float, ...], Field(min_length=1, max_length=100)]
Domain = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


class SweepOptions(SpecModel):
    """What `auto` tries, on which selection data, and by what it chooses.

    Every layer (alone) is tried with every dose or scale. Among the points that cost at most `max_cost`, the one is
    chosen whose gain has the highest lower end of its 95 % interval; of equal ones that with the smallest dose or scale, then the
    cheapest, then the lowest layer. What the cell's own metrics then measure is data that took no part in this.
    """

    gain: Annotated[Metric, Choice("metrics", "metric")]
    """The metric that says what is gained, as under `metrics:`, on selection data: e.g. `reasoning_accuracy` on other problems than
    the spec reports on."""
    number: Annotated[str, Field(max_length=120)] | None = None
    """Which of its numbers, by id; default: the gain over the model without steering, where the metric has one."""
    gain_on: Domain | None = None
    """Domain that the gain is taken of, where the metric has several."""
    texts: dict[Domain, Annotated[DatasetAdapter, Choice("datasets", "adapter")]] = Field(default_factory=dict)
    """Selection texts by domain, for the cost and for a gain that reads texts; default: of each of `dataset.eval` as many documents,
    those that follow the measured ones."""
    cost: Literal["kl", "ce_increase"] = "kl"
    """The cost, as `capability_cost` defines it: KL to the model without steering, or what is added to the loss; nats per token."""
    cost_on: Domain | None = None
    """Domain of the selection texts that the cost is taken of; default the first."""
    max_cost: Annotated[float, Field(ge=0)] | None = None
    """The most that a point may cost; default: whatever it costs."""
    layers: Literal["all"] | Annotated[tuple[Layer, ...], Field(min_length=1)] = "all"
    """Layers that `layers: auto` tries; default all that vectors can be made for."""
    doses: Strengths = (0.05, 0.1, 0.2, 0.4, 0.8)
    """Doses that `dose: auto` tries."""
    scales: Strengths = (0.25, 0.5, 1.0, 2.0)
    """Scales that `scale: auto` tries."""

    @field_validator("layers", "doses", "scales")
    @classmethod
    def _different(cls, values: Any) -> Any:
        if isinstance(values, tuple) and len(set(values)) < len(values):
            raise ValueError("what is tried must be different numbers")
        return values

    @field_validator("doses", "scales")
    @classmethod
    def _not_nothing(cls, values: Any) -> Any:
        if 0 in values:
            raise ValueError("0 is the model without steering, which every point is compared with anyway; leave it out")
        return values

    @field_validator("gain")
    @classmethod
    def _of_steering(cls, gain: Metric) -> Metric:
        if not isinstance(gain, Study) or "steering" not in gain.needs:
            raise ValueError(f"the metric {gain.metric!r} does not measure steering, so nothing can be gained by it")
        return gain

    @model_validator(mode="after")
    def _known_number(self) -> Any:
        known = [number.id for number in self.gain.numbers() if number.higher_is_better is not None]
        if self.number is None and self.study.gain is None:
            raise ValueError(f"`number` must say which number of {self.gain.metric!r} is to gain: {_listed(known)}")
        if self.number is not None and self.number not in known:
            raise ValueError(
                f"{self.gain.metric!r} has no number {self.number!r} of which more or less is better: {_listed(known)}"
            )
        return self

    @property
    def study(self) -> Study:
        """`gain`, as what it was validated to be."""
        assert isinstance(self.gain, Study)
        return self.gain

    @property
    def estimator(self) -> Estimator:
        """The number that is to gain; where it is measured with several settings, as the spec states them."""
        wanted = self.number or self.study.gain
        return next(number for number in self.gain.numbers() if number.id == wanted)

    def selection(self, measured: Mapping[str, DatasetAdapter]) -> dict[str, DatasetAdapter]:
        """The selection texts by domain, where `measured` are those that are reported on."""
        if self.texts:
            return dict(self.texts)
        counted = {name: data for name, data in measured.items() if data.documents is not None}
        return {
            name: data.model_copy(update={"skip": data.skip + (data.documents or 0)}) for name, data in counted.items()
        }

    def cost_domain(self, measured: Mapping[str, DatasetAdapter]) -> str | None:
        """The domain whose selection texts tell the cost; None where there are no texts."""
        return self.cost_on or next(iter(self.texts or measured), None)

    def measures(self) -> Json:
        """What of all this determines the measured points, besides the texts and what is tried."""
        return {"gain": self.gain.determining(), "version": SWEEP_VERSION}

    def rule(self) -> Json:
        """What determines the choice among them."""
        stated = {name: getattr(self, name) for name in ("gain_on", "cost", "cost_on", "max_cost")}
        return {**stated, "number": self.estimator.id, "version": CHOICE_VERSION}


def _listed(ids: list[str]) -> str:
    return ", ".join(ids) or "it has none"
