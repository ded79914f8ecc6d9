"""Choosing how strongly to steer, on problems and texts that are not those reported on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from latentbench.core.errors import InvalidInput
from latentbench.records.record import Record

ACCURACY, KL = "reasoning_accuracy.accuracy", "capability_cost.kl"


def choose_scale(records: Iterable[Record], selection: str, dev: str | None = None, most_kl: float = 0.0) -> float:
    """The scale with the highest accuracy on the problems called `selection`, the smaller one of equals.

    `records` are cells that differ in `steering.scale` (and seed, which is averaged over). With `dev`, a domain of
    neutral text, only scales whose `capability_cost.kl` there is at most `most_kl` nats per token are considered. Raises
    InvalidInput when nothing is left to choose from.
    """
    kept = [record for record in records if record.status == "ok"]
    accuracy = by_scale(kept, ACCURACY, selection)
    cost = by_scale(kept, KL, dev) if dev else dict.fromkeys(accuracy, 0.0)
    allowed = [scale for scale in accuracy if scale in cost and cost[scale] <= most_kl]
    if not allowed:
        raise InvalidInput(
            f"no scale to choose: of {len(accuracy)} with {ACCURACY} on {selection!r} none has {KL} ≤ {most_kl:g} on {dev!r}"
            if accuracy
            else f"no scale to choose: no record has {ACCURACY} on {selection!r}"
        )
    return min(allowed, key=lambda scale: (-accuracy[scale], abs(scale)))


def by_scale(records: Iterable[Record], number: str, domain: str) -> Mapping[float, float]:
    """Scale to the mean over seeds of a number at the cells' own scale."""
    found: dict[float, list[float]] = {}
    for record in records:
        scale = (record.resolved.get("steering") or {}).get("scale")
        for value in record.metrics:
            # Numbers of a sweep within one cell carry a scale of their own and are not about the cell's.
            ours = (value.id, value.domain) == (number, domain) and "scale" not in value.params
            if ours and scale is not None and value.value is not None:
                found.setdefault(float(scale), []).append(value.value)
    return {scale: fmean(values) for scale, values in found.items()}
