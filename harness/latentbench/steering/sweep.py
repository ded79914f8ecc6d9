"""Measures what `auto` tries: the gain and the cost of every point on selection data, and makes content of the chosen one.

All points are tried on the very same problems and texts with the same random numbers. What has been measured is put down
point by point (gain) and layer by layer within a batch of texts (cost), so that a kill loses no more than the point at work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from latentbench.core.errors import DamagedArtifact, InvalidInput
from latentbench.interventions.intervention import Intervention
from latentbench.metrics.base import Estimator
from latentbench.statistics.arrays import Array, Statistics
from latentbench.statistics.intervals import document_interval
from latentbench.steering.auto import SweepOptions
from latentbench.steering.build import at_layer, by_layer
from latentbench.steering.capability_cost import NAME, CapabilityCost
from latentbench.steering.method import CHOSEN, SteeringMethod
from latentbench.steering.sweep_cost import Costs, measure_costs
from latentbench.steering.sweep_points import SweepPoint, chosen_point
from latentbench.store.files import read_arrays, write_arrays
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Study

_GAIN, _COST = "gain/", "cost/"
_FEWEST = 2
"""Selection documents without which a cost says nothing."""


@dataclass(frozen=True)
class Trial:
    """A method at one point, and the part of the candidates' content that it uses there."""

    method: SteeringMethod
    layer: int | None
    strength: float | None
    content: Content

    @property
    def title(self) -> str:
        """For people who watch."""
        where = "" if self.layer is None else f"layer {self.layer}"
        use = "scale" if self.method.dose is None else "dose"
        return ", ".join(filter(None, (where, "" if self.strength is None else f"{use} {self.strength:g}")))

    def read(self, context: StageContext) -> Intervention:
        """The point as something that can be switched on."""
        return self.method.read(self.content, context)


def trials(method: SteeringMethod, candidates: Content) -> list[Trial]:
    """Every point of a sweep, layer by layer. Raises CellFailed for content that has no part for each layer."""
    layers: Sequence[int | None] = sorted(by_layer(candidates)) if "layers" in method.found else (None,)
    return [
        Trial(method.at(layer, strength), layer, strength, candidates if layer is None else at_layer(candidates, layer))
        for layer in layers
        for strength in method.strengths
    ]


def measure_sweep(method: SteeringMethod, candidates: Content, context: StageContext) -> Content:
    """What every point gains and costs: per-unit statistics of the gain and per-document sums of the cost.

    `context` is that of the cell on selection data. Raises InvalidInput where there are too few selection texts, and what the
    gain's metric raises.
    """
    options = options_of(method)
    tried, domain = trials(method, candidates), options.cost_domain(context.experiment.dataset.eval)
    assert domain is not None  # it was validated: there are texts
    if (found := len(context.tokens(domain).ids)) < _FEWEST:
        raise InvalidInput(
            f"auto: the selection texts {domain!r} hold {found} documents; name others in `auto: {{texts: …}}`"
        )
    layers = [[one.read(context) for one in own] for _, own in groupby(tried, key=lambda trial: trial.layer)]
    costs = measure_costs(context, domain, layers)
    tensors = {f"{_COST}{name}": torch.from_numpy(values) for name, values in costs.items()}
    if isinstance(options.study, CapabilityCost):
        gained = _gains_on_texts(options, {domain: costs}, layers, context)
    else:
        gained = [_gain(number, tried, options.study, context) for number in range(len(tried))]
    for number, statistics in enumerate(gained):
        tensors |= {f"{_GAIN}{number}/{name}": torch.from_numpy(values) for name, values in statistics.items()}
    return Content(tensors, {"points": [{"layer": one.layer, "strength": one.strength} for one in tried]})


def options_of(method: SteeringMethod) -> SweepOptions:
    """The options of a method of which something is `auto`."""
    assert method.auto is not None
    return method.auto


def _gains_on_texts(
    options: SweepOptions, known: Mapping[str, Costs], groups: Sequence[Sequence[Intervention]], context: StageContext
) -> list[dict[str, Array]]:
    """For every point the statistics [units] of a gain that is told by texts: of one pass for all of them, as costs are."""
    domains = (options.gain_on,) if options.gain_on else options.study.domains(context.experiment)
    found: list[dict[str, Array]] = [{} for group in groups for _ in group]
    for domain in domains:
        costs = known[domain] if domain in known else measure_costs(context, domain, groups)
        units = context.units([domain])[domain]
        for number, statistics in enumerate(found):
            own = {name: values if values.ndim == 1 else values[number] for name, values in costs.items()}
            summed = units.summed(own)
            statistics |= {f"{domain}/{NAME}.{name}": np.array(v) for name, v in summed.items()}
    return found


def _gain(number: int, tried: Sequence[Trial], study: Study, context: StageContext) -> dict[str, Array]:
    """Statistics [units] of the gain's metric at a point, by `domain/name`: measured now or by an earlier run."""
    trial, title = tried[number], f"point {number + 1} of {len(tried)} ({tried[number].title})"
    path = context.scratch / f"gain-{number}.safetensors"
    try:
        if path.is_file():
            return {name: np.array(values, dtype=np.float64) for name, values in read_arrays(path).items()}
    except DamagedArtifact:
        pass  # measured anew

    def progress(done: float, total: float, unit: str = "steps", *, part: str = "", **told: Any) -> None:
        context.progress(done, total, unit, part=", ".join(filter(None, (title, part))), **told)

    # With the key of the whole sweep, so that every point is tried with the same luck.
    own = context.scratch / f"point-{number}"
    intervention = trial.read(context)
    found = study.run(replace(context, subject=lambda: intervention, scratch=own, progress=progress)).summed()
    arrays = {
        f"{domain}/{name}": np.array(values, dtype=np.float64)
        for domain, named in found.items()
        for name, values in named.items()
    }
    write_arrays(path, {**arrays})
    return arrays


def judged(options: SweepOptions, measured: Content) -> list[SweepPoint]:
    """Every point with its gain, the interval of that, and its cost. Raises InvalidInput where they cannot be told."""
    costs = _costs(options.cost, measured)
    return [
        _judged(place, gain_inputs(options, measured, number), options.estimator, float(costs[number]))
        for number, place in enumerate(measured.meta["points"])
    ]


def gain_inputs(options: SweepOptions, measured: Content, number: int) -> Array:
    """[units, inputs] what the number that is to gain is computed from, at a point. Raises InvalidInput for what is not there."""
    start = f"{_GAIN}{number}/"
    named = {name.removeprefix(start): t.numpy() for name, t in measured.tensors.items() if name.startswith(start)}
    found: dict[str, dict[str, Array]] = {}
    for name, values in named.items():
        domain, _, statistic = name.partition("/")
        found.setdefault(domain, {})[statistic] = values
    return inputs_on(options.estimator, found, options.gain_on)[1]


def inputs_on(estimator: Estimator, found: Mapping[str, Statistics], wanted: str | None) -> tuple[str, Array]:
    """The domain that a number is taken of, `wanted` or the only one, and its inputs [units, inputs] there.

    Raises InvalidInput where there is no such domain, or not one alone.
    """
    has = [domain for domain, named in found.items() if all(name in named for name in estimator.inputs)]
    if wanted is None and len(has) != 1:
        raise InvalidInput(f"auto: {estimator.id} is measured on {', '.join(has) or 'nothing'}; say which in `gain_on`")
    domain = wanted or has[0]
    if domain not in has:
        raise InvalidInput(f"auto: {estimator.id} is not measured on {domain!r} (known: {', '.join(has) or 'none'})")
    return domain, np.stack([found[domain][name] for name in estimator.inputs], axis=1)


def gain_of(estimator: Estimator, inputs: Array) -> tuple[float | None, float | None, float | None]:
    """The gain over inputs [units, inputs] and the ends of its interval; negative where the number itself should fall."""
    with np.errstate(all="ignore"):
        value = float(estimator.formula(*inputs.sum(0)))
    if not math.isfinite(value):
        return None, None, None
    bounds = document_interval(estimator.formula, inputs, units=estimator.units)
    if bounds is None:
        return (value if estimator.higher_is_better else -value), None, None
    return (value, bounds.low, bounds.high) if estimator.higher_is_better else (-value, -bounds.high, -bounds.low)


def _judged(place: Mapping[str, Any], inputs: Array, estimator: Estimator, cost: float) -> SweepPoint:
    return SweepPoint(
        place["layer"], place["strength"], *gain_of(estimator, inputs), cost if math.isfinite(cost) else None
    )


def _costs(kind: str, measured: Content) -> Array:
    """[points] nats per token."""
    sums = {name.removeprefix(_COST): t.numpy() for name, t in measured.tensors.items() if name.startswith(_COST)}
    total = sums["kl"].sum(1) if kind == "kl" else sums["ce"].sum(1) - sums["ce_clean"].sum()
    per_token: Array = total / sums["predictions"].sum()
    return per_token


def choose(method: SteeringMethod, candidates: Content, measured: Content) -> Content:
    """The candidates' content at the chosen point, with the point in its `meta`. Raises InvalidInput where none is allowed."""
    options = options_of(method)
    points = judged(options, measured)
    number = chosen_point(points, options.max_cost)
    trial = trials(method, candidates)[number]
    point = {"number": number, "layer": trial.layer, "strength": trial.strength}
    return Content(trial.content.tensors, {**trial.content.meta, CHOSEN: point})


def check_apart(method: SteeringMethod, selection: StageContext, studies: Iterable[Study], test: StageContext) -> None:
    """Raises InvalidInput where something that a point is chosen on is also among what `studies` measure on in `test`."""
    options = options_of(method)
    cost_on = options.cost_domain(selection.experiment.dataset.eval)
    asked = options.study.asked_digests(selection) | frozenset(selection.tokens(cost_on).digests if cost_on else ())
    for study in studies:
        if both := len(asked & study.asked_digests(test)):
            raise InvalidInput(
                f"auto: {both} of the {len(asked)} problems and texts that a point is chosen on are among those that "
                f"{study.label} measures on; choose on others"
            )
