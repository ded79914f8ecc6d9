"""Reading what a chat model answered. Anything that is not exactly what was asked for is no answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from latentbench.section import Json

LONGEST_EXPLANATION = 2000
"""Characters; longer ones are no explanation."""

_LIST, _LABEL = re.compile(r'"answers"\s*:\s*\[([^\]]*)\]'), re.compile("[01]")
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


def probabilities_in(text: str, ones: Mapping[int, float] | None, count: int) -> tuple[float, ...] | None:
    """The probability that each label of `labels_in` is 1; None where one is not known. `ones`: see `Reply.ones`."""
    for start, stop, answer in _placed(text):
        found = _LIST.search(text, start, stop) if "answers" in answer else None
        places = [digit.start() for digit in _LABEL.finditer(text, *found.span(1))] if found else []
        if len(places) == count and all(place in (ones or {}) for place in places):
            return tuple(ones[place] for place in places) if ones else None
    return None


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
    return (value for *_, value in _placed(text))


def _placed(text: str) -> Iterator[tuple[int, int, dict[str, Json]]]:
    """The same with where each starts and ends. Thoughts become spaces, so that places stay what they are."""
    text = _THOUGHTS.sub(lambda thought: " " * len(thought[0]), text[:_LONGEST_ANSWER])
    decoder, start = json.JSONDecoder(), 0
    for _ in range(_TRIES):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            value, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
        else:
            yield start, stop, value
            start = stop
