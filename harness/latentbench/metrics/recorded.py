"""The metrics behind a record's numbers, as this installation knows them.

`display_of` takes a number's id. The other functions take the `metrics` of a resolved experiment as canonical JSON
(`Record.metrics_section`): hundreds of records share a few of them. A metric of another version, or of a plug-in that is
not installed or cannot be imported, is passed over, and the others are found all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, lru_cache

from pydantic import ValidationError

from latentbench.core.errors import NotAvailable
from latentbench.core.plugins import plugin
from latentbench.metrics.base import Display, Estimator, Metric
from latentbench.metrics.value import settings_text

_ALWAYS = ({"metric": "left_out"},)
"""What rows with an SAE report without being asked."""
Number = tuple[str, int, str]
"""Id, version and settings of a number, by which a record names its estimator."""


@cache
def display_of(id: str) -> Display | None:
    """How the metric that reports the number `id` wants it shown; None where it does not say or is not installed here.

    The metric is found by the first part of the id, which is the name it is registered under. That it is asked for alone
    matters: one plug-in that cannot be imported must not blank the headings of all others.
    """
    try:
        metric = plugin("metrics", id.partition(".")[0])
    except NotAvailable:
        return None
    return metric.displays.get(id) if isinstance(metric, type) and issubclass(metric, Metric) else None


@lru_cache(maxsize=64)
def estimators(metrics: str) -> dict[Number, Estimator]:
    """The estimators of the metrics by what a record says of their numbers."""
    numbers = [number for metric in installed(metrics) for number in metric.numbers()]
    return {(number.id, number.version, settings_text(number.params)): number for number in numbers}


@lru_cache(maxsize=64)
def tallies(metrics: str) -> frozenset[str]:
    """Ids of the numbers that count firing latents over documents."""
    return frozenset(tally.id for metric in installed(metrics) for tally in metric.tallies())


@lru_cache(maxsize=64)
def current_versions(metrics: str) -> dict[str, int]:
    """The version of each number that this installation would measure."""
    known = list(installed(metrics))
    numbers = {number.id: number.version for metric in known for number in metric.numbers()}
    return numbers | {tally.id: tally.version for metric in known for tally in metric.tallies()}


def installed(metrics: str) -> Iterator[Metric]:
    """The metrics themselves, in the order of the spec."""
    for asked in (*json.loads(metrics), *_ALWAYS):
        try:
            metric = plugin("metrics", asked["metric"]).model_validate(asked)
        except (KeyError, TypeError, ValidationError, NotAvailable):
            continue
        if isinstance(metric, Metric):
            yield metric
