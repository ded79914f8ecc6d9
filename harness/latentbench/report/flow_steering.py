"""What steering along flow graphs did, for the page of its cell: numbers from the record, texts from the store."""

from __future__ import annotations

from collections.abc import Iterable

from latentbench.core.spec_model import Json
from latentbench.flow.steering_metric import setting_name
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.study.study import Findings

TEXTS = 6
"""Texts shown per setting."""


def steering_of(record: Record, study: Findings | None) -> dict[str, Json] | None:
    """The page's data; None where the cell was not steered. Without the study in the store there are no texts."""
    numbers = {
        metric.id.partition(".")[2]: metric for metric in record.metrics if metric.id.startswith("flow_steering.")
    }
    if (base := numbers.get("base_rate")) is None:
        return None
    shown = study.details.get("settings", {}) if study else {}
    return {
        "target": base.params["target"],
        "action": base.params["action"],
        "start": base.domain,
        "base": {"rate": _number(base), "texts": _texts(shown.get("base"))},
        "accuracy": numbers["accuracy"].value if "accuracy" in numbers else None,
        "settings": [
            {"schedule": way, "strength": strength, **found, "texts": _texts(shown.get(setting_name(way, strength)))}
            for (way, strength), found in _settings(record.metrics, "strength").items()
        ],
        "costs": [
            {"schedule": way, "cost": cost, **found}
            for (way, cost), found in _settings(record.metrics, "cost").items()
        ],
    }  # fmt: skip


def _settings(metrics: Iterable[MetricValue], by: str) -> dict[tuple[Json, Json], dict[str, Json]]:
    """Numbers by schedule and strength, or cost."""
    found: dict[tuple[Json, Json], dict[str, Json]] = {}
    for metric in metrics:
        name = metric.id.partition(".")[2]
        if metric.id.startswith("flow_steering.") and by in metric.params:
            found.setdefault((metric.params["schedule"], metric.params[by]), {})[name] = _number(metric)
    return found


def _number(metric: MetricValue) -> dict[str, Json]:
    ends = {"low": metric.ci.low, "high": metric.ci.high} if metric.ci else {"low": None, "high": None}
    return {"value": metric.value, "reason": metric.null_reason, **ends}


def _texts(setting: Json) -> list[str]:
    return list(setting["texts"][:TEXTS]) if setting else []
