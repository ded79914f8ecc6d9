"""Logs in the Every Eval Ever schema (version 0.2.2, github.com/evaleval/every_eval_ever): one per record.

The schema wants bounds of every score. Where a number has none, the largest float stands there, and the log says so.
"""

from __future__ import annotations

import sys
from datetime import datetime
from importlib.metadata import version

from latentbench.core.hashing import canonical
from latentbench.core.protocols import model_name
from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Column
from latentbench.leaderboard.evidence import units_of
from latentbench.leaderboard.load import LoadedRecord
from latentbench.metrics.recorded import display_of
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record

SCHEMA = "0.2.2"
_LOWEST = {"nats/token": 0.0, "latents/token": 0.0, "cosine": -1.0, "parameters": 0.0, "MAC/token": 0.0}
_HIGHEST = {"fraction": 1.0, "cosine": 1.0}


def log(cell: LoadedRecord) -> Json:
    """The log of one record, with every number that has a value."""
    record = cell.record
    epoch = str(int(cell.created.timestamp()))
    model = _model(record)
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"latentbench/{model['id'].replace('/', '_')}/{record.cell[:16]}",
        "evaluation_timestamp": epoch,
        "retrieved_timestamp": epoch,
        "source_metadata": {
            "source_name": "latentbench",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "latentbench", "version": version("latentbench"), "additional_details": _library(record)},
        "model_info": model,
        "evaluation_results": [_result(cell, m) for m in record.metrics if m.value is not None],
    }  # fmt: skip


def _result(cell: LoadedRecord, metric: MetricValue) -> Json:
    return {
        "evaluation_name": metric.id + (f" on {metric.domain}" if metric.domain else ""),
        "source_data": {"dataset_name": metric.domain or "none", "source_type": "other", "additional_details": _data(cell, metric)},
        "evaluation_timestamp": str(int(datetime.fromisoformat(cell.record.created).timestamp())),
        "metric_config": _config(metric),
        "score_details": {"score": metric.value, "details": _strings(metric.params), **_uncertainty(cell, metric)},
    }  # fmt: skip


def _config(metric: MetricValue) -> Json:
    low, high = _LOWEST.get(metric.unit), _HIGHEST.get(metric.unit)
    if (display := display_of(metric.id)) and display.least is not None:
        low = display.least
    notes = {"definition_version": str(metric.version)}
    if metric.higher_is_better is None:
        notes["direction"] = "neither direction is better in itself"
    if low is None or high is None:
        notes["bounds"] = "the largest float stands for a missing bound"
    return {
        "evaluation_description": f"{metric.id}, version {metric.version}",
        "metric_id": f"latentbench.{metric.id}",
        "metric_unit": metric.unit,
        "metric_parameters": {name: _scalar(value) for name, value in metric.params.items()},
        "lower_is_better": metric.higher_is_better is False,
        "score_type": "continuous",
        "min_score": -sys.float_info.max if low is None else low,
        "max_score": sys.float_info.max if high is None else high,
        "additional_details": notes,
    }


def _uncertainty(cell: LoadedRecord, metric: MetricValue) -> dict[str, Json]:
    if metric.ci is None:
        return {}
    interval = {
        "lower": metric.ci.low,
        "upper": metric.ci.high,
        "confidence_level": metric.ci.level,
        "method": metric.ci.method,
    }
    counted = {} if metric.n is None else {"num_samples": metric.n}
    return {"uncertainty": {"confidence_interval": interval, **counted}}


def _data(cell: LoadedRecord, metric: MetricValue) -> dict[str, str]:
    agreed = cell.record.comparability.get(metric.domain or "")
    known = {"units": units_of(cell, Column.of(metric), metric.ci.method if metric.ci else None)}
    return known | ({"comparability_key": agreed.key, **_strings(agreed.fields)} if agreed else {})


def _library(record: Record) -> dict[str, str]:
    return _strings({"cell": record.cell, "spec": record.spec.name, "label": record.label, "seed": record.seed})


def _model(record: Record) -> dict[str, Json]:
    """The language model with what was put into it, in the words of the schema."""
    found = record.resolved.get("model")
    name = model_name(found) if found else "unknown"
    parts = {part: record.resolved.get(part) for part in ("layer", "layers", "sae", "steering", "concepts", "flow")}
    return {"name": name, "id": name, "additional_details": _strings({k: v for k, v in parts.items() if v})}


def _scalar(value: Json) -> str | float | bool | None:
    """A parameter as the schema wants it, not nested: what holds more than one value becomes JSON in a string."""
    return value if value is None or isinstance(value, str | int | float) else canonical(value)


def _strings(values: Json) -> dict[str, str]:
    """Details as the schema wants them: every value is a string."""
    return {str(k): v if isinstance(v, str) else canonical(v) for k, v in values.items()}
