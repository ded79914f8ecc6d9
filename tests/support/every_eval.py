"""What the Every Eval Ever schema (version 0.2.2) demands of the parts of a log that we write, stricter than it.

Restated from its published field list: keys that we do not write are refused here, so that a misspelt one is found.
"""

from __future__ import annotations

from typing import Any


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


TEXT = {"type": "string"}
NUMBER = {"type": "number"}
EPOCH = {"type": "string", "pattern": r"^\d+$"}
DETAILS = {"type": "object", "additionalProperties": TEXT}
SCALARS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}

_SOURCE = _object(
    {
        "source_type": {"enum": ["documentation", "evaluation_run"]},
        "source_organization_name": TEXT,
        "evaluator_relationship": {"enum": ["first_party", "third_party", "collaborative", "other"]},
    },
    {"source_name": TEXT},
)
_INTERVAL = _object(
    {"lower": NUMBER, "upper": NUMBER},
    {"confidence_level": {"type": "number", "minimum": 0, "maximum": 1}, "method": TEXT},
)
_METRIC = _object(
    {
        "lower_is_better": {"type": "boolean"},
        "score_type": {"const": "continuous"},
        "min_score": NUMBER,
        "max_score": NUMBER,
    },
    {
        "evaluation_description": TEXT,
        "metric_id": TEXT,
        "metric_unit": TEXT,
        "metric_parameters": SCALARS,
        "additional_details": DETAILS,
    },
)
_SCORE = _object(
    {"score": NUMBER},
    {
        "details": DETAILS,
        "uncertainty": _object({}, {"confidence_interval": _INTERVAL, "num_samples": {"type": "integer"}}),
    },
)
_RESULT = _object(
    {
        "evaluation_name": TEXT,
        "source_data": _object(
            {"dataset_name": TEXT, "source_type": {"const": "other"}}, {"additional_details": DETAILS}
        ),
        "metric_config": _METRIC,
        "score_details": _SCORE,
    },
    {"evaluation_timestamp": EPOCH},
)

EVERY_EVAL = _object(
    {
        "schema_version": {"const": "0.2.2"},
        "evaluation_id": {"type": "string", "pattern": r"^[^/]+/[^/]+/[^/]+$"},
        "retrieved_timestamp": EPOCH,
        "source_metadata": _SOURCE,
        "model_info": _object({"name": TEXT, "id": TEXT}, {"additional_details": DETAILS}),
        "eval_library": _object({"name": TEXT, "version": TEXT}, {"additional_details": DETAILS}),
        "evaluation_results": {"type": "array", "items": _RESULT},
    },
    {"evaluation_timestamp": EPOCH},
)
