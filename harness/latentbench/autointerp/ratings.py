"""Texts rated by a judge: one whole number on a scale for each question, read from whatever the judge says around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from latentbench.core.judges import answered
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from latentbench.statistics.arrays import Array


def ratings(
    texts: Sequence[str], questions: Sequence[str], instruction: str, top: int, judge: Judge, roots: Roots, cache: Path
) -> Array:
    """[texts] float64: answers to each text's question, numbers from 0 to `top`, divided by it; NaN where there is none.

    Raises NotAvailable when the judge is gone.
    """
    requests = [_request(text, question, instruction) for text, question in zip(texts, questions, strict=True)]
    replies = answered(judge.chat(requests, roots, cache), judge.label)
    return np.array([rating(reply, top) for reply in replies], dtype=np.float64)


def _request(text: str, question: str, instruction: str) -> list[Mapping[str, str]]:
    asked = f"{question}\n\nText:\n<text>\n{text}\n</text>"
    return [{"role": "system", "content": instruction}, {"role": "user", "content": asked}]


@cache
def _scale(top: int) -> re.Pattern[str]:
    """Mentions of the scale itself: `0 to 5`, and what follows the number in `4/5` and `4 out of 5`."""
    return re.compile(
        rf"\b0\s*(?:to|through|[-–—])\s*{top}\b|(?:/|\b(?:out )?of\b)\s*(?:a (?:possible|maximum(?: of)?) )?{top}\b(?!\.\d)",
        re.IGNORECASE,
    )


_VALUE = r"(?<![\w.,])(-?\d+(?:[.,]\d+)?)(?!\w)"
_ALONE = re.compile(rf"\A\W*?{_VALUE}(?=\s*(?:\Z|[^\w\s])|[ \t]*\n)")
"""At the beginning, by itself."""
_ANNOUNCED = re.compile(rf"\b(?:rate|rating|score|answer)\b\D{{0,20}}?{_VALUE}", re.IGNORECASE)


def rating(reply: Reply, top: int) -> float:
    """0…1 from a number at the beginning, else the last one that is announced, else the last one.

    NaN where there is none, or one that is no whole number from 0 to `top`.
    """
    text = _scale(top).sub(" ", reply.text or "")
    found = _ALONE.findall(text) or _ANNOUNCED.findall(text) or re.findall(_VALUE, text) or [""]
    return int(found[-1]) / top if found[-1] in set(map(str, range(top + 1))) else float("nan")
