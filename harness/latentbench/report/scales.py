"""The frontier of a sweep over `steering.scale`: accuracy against what steering costs, and the scale to use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latentbench.canonical import canonical
from latentbench.errors import InvalidInput
from latentbench.metrics.reasoning.choosing import ACCURACY, KL, by_scale, choose_scale
from latentbench.record import Record

INCREASE = "capability_cost.ce_increase"


@dataclass(frozen=True)
class Frontier:
    """One kind of steering at several scales, every number a mean over seeds."""

    label: str
    """Of the row with the chosen scale."""
    scales: tuple[float, ...]
    """Ascending."""
    columns: Mapping[str, Mapping[float, float]]
    """Title to scale to number."""
    chosen: float


def frontiers(
    records: Iterable[Record], selection: str, texts: str | None = None, most_kl: float = float("inf")
) -> list[Frontier]:
    """One frontier for every set of records that differ in `steering.scale` and seed alone.

    The scale is chosen by accuracy on `selection` among those whose KL per token on the domain `texts` is at most
    `most_kl` (see `choose_scale`). Raises InvalidInput where no record swept a scale.
    """
    swept = [group for group in _alike(records) if len({_scale(record) for record in group}) > 1]
    if not swept:
        raise InvalidInput("nothing to choose: no rows differ in `steering.scale` alone; sweep it with `matrix:`")
    return [_frontier(group, selection, texts, most_kl) for group in swept]


def _alike(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        steering = record.resolved.get("steering")
        if record.status == "ok" and steering and steering.get("scale") is not None:
            groups[canonical({**record.resolved, "steering": {**steering, "scale": None}})].append(record)
    return list(groups.values())


def _frontier(group: Sequence[Record], selection: str, texts: str | None, most_kl: float) -> Frontier:
    measured = {(value.id, value.domain) for record in group for value in record.metrics}
    wanted = sorted((number, domain) for number, domain in measured if domain and number in (ACCURACY, KL, INCREASE))
    columns = {f"{number.partition('.')[2]} {domain}": by_scale(group, number, domain) for number, domain in wanted}
    chosen = choose_scale(group, selection, texts, most_kl)
    label = next(record.label for record in group if _scale(record) == chosen)
    return Frontier(label, tuple(sorted({_scale(record) for record in group})), columns, chosen)


def _scale(record: Record) -> float:
    return float(record.resolved["steering"]["scale"])
