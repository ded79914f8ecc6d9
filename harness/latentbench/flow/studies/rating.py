"""A judge's opinion of texts: how much of a theme is in them, and whether they make sense (after Feature Flow, App. B)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from latentbench.metrics.base import Array
from latentbench_adapters.judges.answered import answered
from latentbench_adapters.protocols import Judge, Reply, Roots

QUESTIONS = {
    "behaviour": "How strongly is the text about this theme: {theme}? 0 means not at all, 5 means it is about nothing else.",
    "coherence": "How coherent is the text, whatever it is about? 0 means a jumble of words, 5 means fluent and sensible.",
}
INSTRUCTION = (
    "You rate short texts written by a language model. Answer with one whole number from 0 to 5 and nothing else."
)


def rated(
    texts: Sequence[str], theme: str, judge: Judge, roots: Roots, cache: Path, *, remove: bool
) -> dict[str, Array]:
    """[texts] float64: `behaviour`, `coherence`, `total` in 0…1 (0 where not judged), and `judged` 1 or 0.

    Raises NotAvailable when the judge is gone.
    """
    scores = {name: _scores(texts, theme, question, judge, roots, cache) for name, question in QUESTIONS.items()}
    behaviour, coherence = scores["behaviour"], scores["coherence"]
    judged = np.isfinite(behaviour) & np.isfinite(coherence)
    total = (1 - behaviour if remove else behaviour) * coherence
    named = {"behaviour": behaviour, "coherence": coherence, "total": total}
    return {**{name: np.where(judged, x, 0.0) for name, x in named.items()}, "judged": judged.astype(np.float64)}


def _scores(texts: Sequence[str], theme: str, question: str, judge: Judge, roots: Roots, cache: Path) -> Array:
    requests = [_request(text, question.format(theme=theme)) for text in texts]
    replies = answered(judge.chat(requests, roots, cache), judge.label)
    return np.array([_score(reply) for reply in replies], dtype=np.float64)


def _request(text: str, question: str) -> list[Mapping[str, str]]:
    asked = f"{question}\n\nText:\n<text>\n{text}\n</text>"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]


_SCALE = re.compile(
    r"\b0\s*(?:to|through|[-–—])\s*5\b|(?:/|\b(?:out )?of\b)\s*(?:a (?:possible|maximum(?: of)?) )?5\b(?!\.\d)",
    re.IGNORECASE,
)
"""Mentions of the scale itself: `0 to 5`, and what follows the number in `4/5` and `4 out of 5`."""
_VALUE = r"(?<![\w.,])(-?\d+(?:[.,]\d+)?)(?!\w)"
_ALONE = re.compile(rf"\A\W*?{_VALUE}(?=\s*(?:\Z|[^\w\s])|[ \t]*\n)")
"""At the beginning, by itself."""
_ANNOUNCED = re.compile(rf"\b(?:rate|rating|score|answer)\b\D{{0,20}}?{_VALUE}", re.IGNORECASE)


def _score(reply: Reply) -> float:
    """0…1 from a number at the beginning, else the last one that is announced, else the last one.

    NaN where there is none, or one that is no whole number from 0 to 5.
    """
    text = _SCALE.sub(" ", reply.text or "")
    found = _ALONE.findall(text) or _ANNOUNCED.findall(text) or re.findall(_VALUE, text) or [""]
    return int(found[-1]) / 5 if found[-1] in {"0", "1", "2", "3", "4", "5"} else float("nan")
