"""Reading what a chat model answered. Anything that is not exactly what was asked for is no answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from harness.section import Json

LONGEST_EXPLANATION = 2000
"""Characters; longer ones are no explanation."""

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_LONGEST_ANSWER = 200_000
_TRIES = 200


def explanation_in(text: str) -> str | None:
    """The explanation in `{"explanation": "…"}`, on one line; None when there is none, or more than one."""
    found = {
        " ".join(value.split())
        for answer in _objects(text)
        if isinstance(value := answer.get("explanation"), str) and 0 < len(value.strip()) <= LONGEST_EXPLANATION
    }
    return found.pop() if len(found) == 1 else None


def labels_in(text: str, count: int) -> tuple[bool, ...] | None:
    """The labels in `{"answers": [0, 1, …]}`; None unless the text holds one such list, of `count` zeros and ones.

    Two different lists contradict each other, and a list of another length cannot be matched to the questions.
    """
    found = {_labels(answer["answers"], count) for answer in _objects(text) if "answers" in answer}
    return found.pop() if len(found) == 1 else None


def _labels(value: Json, count: int) -> tuple[bool, ...] | None:
    if not isinstance(value, list) or len(value) != count:
        return None
    whole = all(isinstance(label, int) and label in (0, 1) for label in value)
    return tuple(bool(label) for label in value) if whole else None


def _objects(text: str) -> Iterator[dict[str, Json]]:
    """The JSON objects in a text, from left to right, whatever stands around them."""
    text = _THOUGHTS.sub("", text[:_LONGEST_ANSWER])
    decoder, start = json.JSONDecoder(), 0
    for _ in range(_TRIES):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            value, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
        else:
            yield value
