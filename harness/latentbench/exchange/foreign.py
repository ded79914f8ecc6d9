"""A result of another tool, read strictly, before it becomes a record.

The files come from anywhere: whatever a record cannot hold becomes null with a reason or is refused here, once for all tools.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from latentbench.core.errors import RefusedFile
from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json
from latentbench.metrics.value import Interval, MetricValue

NOT_A_NUMBER = "NaN in the imported file"
DEEPEST = 32
"""Levels of nesting that a result may have; those of all known tools have fewer than ten."""
Z = 1.959963984540054
"""Standard errors on either side that hold 95 % of a normal distribution."""
_DIGITS = 18
"""Digits of the longest whole number that every reader of JSON holds exactly, in 64 bits; longer ones become floats."""
_LONGEST_WORD = 60
"""Characters of a part of a name: file systems take 255 bytes for the parts of a file's name together."""
MINUS_ONE = "−1 in the imported file, where the tool writes it for NaN"


@dataclass(frozen=True)
class ForeignResult:
    """One run of another tool."""

    tool: str
    version: str | None
    name: str
    """What was measured, as a path of words: `gemma-scope-2b-pt-res`."""
    label: str
    """What tells several results of that name apart."""
    metrics: tuple[MetricValue, ...]
    facts: Mapping[str, Mapping[str, Json]]
    """Domain to what must agree for its numbers to be compared."""
    resolved: Mapping[str, Json] = field(default_factory=dict)
    """What the file says of model, layer, SAE and data, in the words of a spec."""
    created: str | None = None
    warnings: tuple[str, ...] = ()
    seed: int = 0


def parsed(content: bytes, name: str) -> Json:
    """JSON of another tool; NaN, infinity and what no float holds become null. Raises RefusedFile."""
    try:
        data = json.loads(content, parse_constant=lambda _: None, parse_int=_whole, parse_float=_finite)
        _keepable(data)
    except (ValueError, RecursionError) as error:
        raise RefusedFile(f"{name} is not JSON that can be kept: {error}") from None
    return data


def _whole(text: str) -> int | float | None:
    return int(text) if len(text) <= _DIGITS else _finite(text)


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _keepable(data: Json) -> None:
    """Raises ValueError for what a record could not hold: lone surrogates, and nesting that no result needs."""
    json.dumps(data, ensure_ascii=False).encode()
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(DEEPEST):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} deep")


def mapping(value: Json, what: str) -> dict[str, Json]:
    """A JSON object. Raises RefusedFile with what it should have been."""
    if not isinstance(value, dict):
        raise RefusedFile(f"{what} must be an object, not {_kind(value)}")
    return value


def optional_mapping(value: Json) -> dict[str, Json]:
    """A JSON object, or an empty one for anything else: for what only describes a result and need not be there."""
    return value if isinstance(value, dict) else {}


def text(value: Json, what: str) -> str:
    """A text that is not empty. Raises RefusedFile."""
    if not isinstance(value, str) or not value.strip():
        raise RefusedFile(f"{what} must be text, not {_kind(value)}")
    return value


def metric_value(
    id: str,
    value: Json,
    *,
    unit: str,
    better: bool | None,
    domain: str,
    n: int | None = None,
    params: Mapping[str, Json] | None = None,
    stderr: Json = None,
    what: str = "",
) -> MetricValue:
    """A number in our form. Raises RefusedFile for what is neither a number nor null.

    `better` is whether higher is better (None: never ranked), `stderr` a standard error that becomes a normal interval.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise RefusedFile(f"{what or id} must be a number, not {_kind(value)}")
    known = None if value is None or not math.isfinite(value) else float(value)
    return MetricValue(
        id=id,
        version=1,
        domain=domain,
        value=known,
        null_reason=NOT_A_NUMBER if known is None else None,
        unit=unit,
        higher_is_better=better,
        n=n,
        ci=None if known is None else _interval(known, stderr),
        params=dict(params or {}),
    )


def word(name: str) -> str:
    """Foreign text as part of a name and path: letters, digits, `.`, `_` and `-`, of bounded length.

    Of a longer text the beginning and a digest stay: rows are told apart by such names.
    """
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    if len(cleaned) > _LONGEST_WORD:
        cleaned = f"{cleaned[: _LONGEST_WORD - 9]}-{digest('word', name)[:8]}"
    return cleaned or "unnamed"


def domain_of(dataset: str) -> str:
    """A domain's name for a dataset: the last part of its id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", dataset.rstrip("/").rsplit("/", 1)[-1]).strip("-")[:40] or "data"


def _interval(value: float, stderr: Json) -> Interval | None:
    if not isinstance(stderr, int | float) or isinstance(stderr, bool) or not math.isfinite(stderr) or stderr < 0:
        return None
    low, high = value - Z * stderr, value + Z * stderr
    if not math.isfinite(low) or not math.isfinite(high):
        return None
    return Interval(low=low, high=high, method="problem normal approximation, from the reported standard error")


def _kind(value: Json) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
