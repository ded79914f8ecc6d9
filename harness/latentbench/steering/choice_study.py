"""Measures `steering_choice`: the chosen point among those that were tried, and its gain on test data beside that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.spec_model import Json
from latentbench.metrics.base import Estimator
from latentbench.metrics.value import Interval, MetricValue
from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import METHOD
from latentbench.statistics.paired import LEVEL
from latentbench.statistics.unpaired import unpaired_difference
from latentbench.steering.auto import SweepOptions
from latentbench.steering.choice import NAME, SteeringChoice
from latentbench.steering.method import SteeringMethod
from latentbench.steering.sweep import gain_inputs, gain_of, inputs_on, judged, options_of
from latentbench.steering.sweep_points import SweepPoint, chosen_point, is_allowed, on_frontier
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Findings, Study


@dataclass(frozen=True)
class Swept:
    """A sweep that has been measured, and the point that was chosen of it."""

    options: SweepOptions
    use: str
    """What the strength of its points is: `dose` or `scale`."""
    measured: Content
    points: list[SweepPoint]
    number: int
    """Of the chosen point."""

    @property
    def chosen(self) -> SweepPoint:
        """The chosen point."""
        return self.points[self.number]

    @property
    def inputs(self) -> Array:
        """[units, inputs] what the chosen point's gain is computed from, on selection data."""
        return gain_inputs(self.options, self.measured, self.number)

    def settings(self, point: SweepPoint) -> dict[str, Json]:
        """Which point it is, as settings of a number."""
        named = {"layer": point.layer, self.use: point.strength}
        return {name: value for name, value in named.items() if value is not None}


def tell_choice(study: SteeringChoice, context: StageContext) -> Findings:
    """The choice, and what became of it on what the cell's own metrics measured.

    Raises InvalidInput where nothing was to be chosen, NotAvailable where the sweep is no longer in the store.
    """
    swept = swept_of(context)
    values = [*_of_selection(swept), *_of_frontier(swept)]
    for test in study.after(context.experiment):
        values += _of_test(swept, test, context.findings(test))
    return Findings(values=tuple(values), details=_details(swept), warnings=tuple(_warnings(swept)))


def swept_of(context: StageContext) -> Swept:
    """What the cell's subject was chosen by. Raises InvalidInput and NotAvailable."""
    method: Any = context.experiment.steering
    if not isinstance(method, SteeringMethod) or method.auto is None:
        raise InvalidInput("steering_choice: nothing under `steering:` is `auto`")
    if (measured := context.chosen_by()) is None:
        raise NotAvailable("steering_choice: what the point was chosen by is not in the store")
    options = options_of(method)
    points = judged(options, measured)
    use = "scale" if method.dose is None else "dose"
    return Swept(options, use, measured, points, chosen_point(points, options.max_cost))


def _of_selection(swept: Swept) -> Iterator[MetricValue]:
    chosen, estimator = swept.chosen, swept.options.estimator
    if chosen.layer is not None:
        yield _value("layer", chosen.layer, "block")
    if chosen.strength is not None:
        yield _value(swept.use, chosen.strength, "ratio" if swept.use == "dose" else "factor")
    yield _value("points", len(swept.points), "points")
    ends = (chosen.low, chosen.high, METHOD.format(estimator.units.removesuffix("s")))
    yield _value("selection_gain", chosen.gain, estimator.unit, n=len(swept.inputs), ci=_interval(*ends))
    yield _value("selection_cost", chosen.cost, "nats/token")


def _of_frontier(swept: Swept) -> Iterator[MetricValue]:
    for point, front in zip(swept.points, on_frontier(swept.points), strict=True):
        if front:
            settings = swept.settings(point)
            yield _value("frontier_gain", point.gain, swept.options.estimator.unit, params=settings)
            yield _value("frontier_cost", point.cost, "nats/token", params=settings)


def _of_test(swept: Swept, test: Study, found: Findings) -> Iterator[MetricValue]:
    """The gain on test data, and by how much it is less than on selection data."""
    estimator = _same_number(swept.options.estimator, test)
    wanted = swept.options.gain_on
    domain, inputs = inputs_on(estimator, found.summed(), wanted if wanted in found.statistics else None)
    gain, low, high = gain_of(estimator, inputs)
    shared: dict[str, Any] = {"domain": domain, "n": len(inputs), "params": dict(estimator.params)}
    kind = METHOD.format(estimator.units.removesuffix("s"))
    yield _value("test_gain", gain, estimator.unit, better=True, ci=_interval(low, high, kind), **shared)
    sign = 1.0 if estimator.higher_is_better else -1.0
    # Of other units than the selection's: nothing is paired.
    apart = unpaired_difference(
        lambda *sums: sign * estimator.formula(*sums), [swept.inputs], [inputs], estimator.units
    )
    known = gain is not None and swept.chosen.gain is not None
    ends = _interval(apart.low, apart.high, f"{estimator.units.removesuffix('s')} bootstrap, unpaired")
    yield _value("optimism", apart.value if known else None, estimator.unit, ci=ends if known else None, **shared)


def _same_number(wanted: Estimator, test: Study) -> Estimator:
    return next(number for number in test.numbers() if number.id == wanted.id)


def _interval(low: float | None, high: float | None, method: str) -> Interval | None:
    return None if low is None or high is None else Interval(low=low, high=high, level=LEVEL, method=method)


def _value(
    name: str,
    value: float | None,
    unit: str,
    *,
    domain: str | None = None,
    better: bool | None = None,
    n: int | None = None,
    ci: Interval | None = None,
    params: dict[str, Json] | None = None,
) -> MetricValue:
    return MetricValue(
        id=f"{NAME}.{name}",
        version=1,
        domain=domain,
        value=value,
        null_reason="not finite" if value is None else None,
        unit=unit,
        higher_is_better=better,
        n=n,
        ci=ci,
        params=params or {},
    )


def _details(swept: Swept) -> dict[str, Json]:
    """Everything a page draws: every point, whether it is on the frontier and whether it was allowed, and the rule."""
    front = on_frontier(swept.points)
    points = [
        {**point.plain(), "frontier": on, "allowed": is_allowed(point, swept.options.max_cost)}
        for point, on in zip(swept.points, front, strict=True)
    ]
    rule = {"number": swept.options.estimator.id, "cost": swept.options.cost, "max_cost": swept.options.max_cost}
    return {"points": points, "chosen": swept.number, "strength": swept.use, "rule": rule}


def _warnings(swept: Swept) -> Iterator[str]:
    low, gain = swept.chosen.low, swept.chosen.gain
    if low is not None and low <= 0:
        yield (
            f"auto: none of {len(swept.points)} points gains for certain on the selection data; the chosen one gains {gain:.3g}, "
            f"from {low:.3g}"
        )
