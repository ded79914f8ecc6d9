"""From per-document statistics to the numbers of a record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Estimator, Metric, Tally
from latentbench.metrics.value import Interval, MetricValue
from latentbench.statistics.arrays import Counts, Statistics
from latentbench.statistics.intervals import document_interval
from latentbench.statistics.units import Units

Firing = Mapping[int | None, Counts]
"""Firing counts [width] by budget (None: as trained)."""


def metric_values(
    metrics: Sequence[Metric],
    statistics: Mapping[str, Statistics],
    firing: Mapping[str, Firing] | None = None,
    seed: int = 0,
    reasons: Mapping[str, str] | None = None,
    units: Mapping[str, Units] | None = None,
) -> list[MetricValue]:
    """All numbers of `metrics`, domain by domain.

    `statistics` maps each domain to its statistics per document (or whatever is counted), `firing` to its firing counts,
    `units` to which of them are one; those of a domain that is not in it all differ. A number that cannot be computed is
    null with the reason; NaN and infinity never leave. `reasons` says why statistics are missing.
    """
    told, known = reasons or {}, units or {}
    counted = {name: known[name].summed(found) if name in known else found for name, found in statistics.items()}
    return [
        value.model_copy(update={"repeats": known[domain].repeats})
        if domain in known and value.n is not None
        else value
        for domain in counted
        for value in _domain_values(metrics, domain, counted, firing or {}, seed, told)
    ]


def null_value(
    number: Estimator | Tally,
    domain: str,
    reason: str,
    params: Mapping[str, Json] | None = None,
    n: int | None = None,
) -> MetricValue:
    """A number that could not be computed, and why."""
    return _value(number, domain, dict(params or {}), value=None, null_reason=reason, n=n)


def _domain_values(
    metrics: Iterable[Metric],
    domain: str,
    statistics: Mapping[str, Statistics],
    firing: Mapping[str, Firing],
    seed: int,
    reasons: Mapping[str, str],
) -> Iterator[MetricValue]:
    for metric in metrics:
        for estimator in metric.numbers():
            for budget in (None,) if estimator.shared else metric.measured_at():
                yield _estimated(estimator, budget, domain, statistics[domain], seed, reasons)
        for tally in metric.tallies():
            for budget in metric.measured_at():
                yield _tallied(tally, budget, domain, statistics[domain], firing.get(domain, {}))


def _estimated(
    estimator: Estimator,
    budget: int | None,
    domain: str,
    statistics: Statistics,
    seed: int,
    reasons: Mapping[str, str],
) -> MetricValue:
    names = estimator.names(budget)
    params: dict[str, Json] = {**estimator.params, **({} if budget is None else {"budget": budget})}
    missing = [name for name in names if name not in statistics]
    if missing:
        said = (reasons[name] for name in missing if name in reasons)
        return null_value(estimator, domain, next(said, f"not measured: {', '.join(missing)}"), params)
    inputs = np.stack([statistics[name] for name in names], axis=1)
    with np.errstate(all="ignore"):  # 0/0 is no mistake here, it becomes null with the sums as the reason
        value = float(estimator.formula(*inputs.sum(0)))
    if not math.isfinite(value):
        reason = estimator.undefined or _why_not_finite(names, inputs.sum(0).tolist())
        return null_value(estimator, domain, reason, params, len(inputs))
    bounds = document_interval(estimator.formula, inputs, seed=seed, units=estimator.units)
    interval = Interval(**bounds._asdict()) if bounds else None
    return _value(estimator, domain, params, value=value, n=len(inputs), ci=interval)


def _tallied(tally: Tally, budget: int | None, domain: str, statistics: Statistics, firing: Firing) -> MetricValue:
    params: dict[str, Json] = {} if budget is None else {"budget": budget}
    if budget not in firing or "tokens" not in statistics:
        return null_value(tally, domain, "not measured: firing counts", params)
    tokens = int(statistics["tokens"].sum())
    value = tally.formula(firing[budget], tokens)
    params |= {"tokens": tokens}
    if not math.isfinite(value):
        return null_value(tally, domain, f"not finite over {tokens} tokens", params)
    return _value(tally, domain, params, value=value, n=len(statistics["tokens"]))


def _why_not_finite(names: Iterable[str], sums: Iterable[float]) -> str:
    # As text, because the sums themselves may be NaN or infinite.
    return "not finite, from " + ", ".join(f"{name} = {total:g}" for name, total in zip(names, sums, strict=True))


def _value(number: Estimator | Tally, domain: str, params: dict[str, Json], **fields: Json) -> MetricValue:
    return MetricValue(
        id=number.id,
        version=number.version,
        domain=domain,
        unit=number.unit,
        higher_is_better=number.higher_is_better,
        params=params,
        **fields,
    )
