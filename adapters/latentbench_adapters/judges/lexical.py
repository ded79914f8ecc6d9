"""`adapter: lexical`: a judge without a language model, deterministic and offline.

From the windows a latent is explained from it learns how strongly each feature of a token speaks for the latent firing
there, as smoothed log-odds: with n⁺ and n⁻ the training tokens with the feature on which the latent is active and
inactive, and b the share of active tokens,

    w(feature) = log (n⁺ + b) / (n⁻ + 1 − b) − log b / (1 − b)          (0 for a feature never seen)

A token's evidence is the sum over the features of one *view* (the token; it and the one before; …), a window's evidence
the maximum or the mean over its tokens, the evidence for marks the mean over the marked tokens. The view, maximum or mean,
and the thresholds are chosen by cross-validation over the training windows. The probability is the logistic function of
evidence − threshold. Such a rule finds latents that stand for tokens and short contexts; it is a lower bound of what a
reader can find, the same for every SAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from latentbench.section import Json
from latentbench_adapters.judges.evidence import VIEWS, Evidence, Labelled, logistic
from latentbench_adapters.judges.rules import Active, Marks, Rule, RuleJudge, Tokens
from latentbench_adapters.judges.wording import sentence
from latentbench_adapters.protocols import Roots

_VERSION = 1
"""Raised when the same examples give another rule."""
_FOLDS = 4

Scored = list[tuple[float, bool]]
"""Evidence and truth of windows."""


class LexicalJudge(RuleJudge):
    """Learns a token and context rule from the examples; needs no language model, network or key."""

    adapter: Literal["lexical"] = "lexical"

    def identity(self, roots: Roots) -> Json:
        return {"lexical": _VERSION}

    def learn(self, active: Sequence[Active], inactive: Sequence[Tokens]) -> Rule:
        windows = [Labelled(w.tokens, tuple(value > 0 for value in w.activations)) for w in active]
        windows += [Labelled(tokens, (False,) * len(tokens)) for tokens in inactive]
        held_out = {view: _held_out(windows, view) for view in VIEWS}
        ways = [(view, how, _windows(held_out[view], how)) for view in VIEWS for how in ("max", "mean")]
        view, pooled, scored = max(ways, key=lambda way: _threshold(way[2])[0])
        marks_view, marks = max(((v, _marks(held_out[v])) for v in VIEWS), key=lambda way: _threshold(way[1])[0])
        return LexicalRule(
            Evidence(windows, view), pooled, _threshold(scored)[1], Evidence(windows, marks_view), _threshold(marks)[1]
        )


class LexicalRule(Rule):
    """Evidence and thresholds for windows and for marks."""

    def __init__(
        self, windows: Evidence, pooled: str, threshold: float, marks: Evidence, marks_threshold: float
    ) -> None:
        self._windows, self._pooled, self._threshold = windows, pooled, threshold
        self._marks, self._marks_threshold = marks, marks_threshold
        self.explanation = sentence(windows, pooled)

    def detect(self, windows: Sequence[Tokens]) -> list[float]:
        return [logistic(pool(self._windows.of(tokens), self._pooled) - self._threshold) for tokens in windows]

    def fuzz(self, windows: Sequence[tuple[Tokens, Marks]]) -> list[float]:
        return [
            logistic(marked_mean(self._marks.of(tokens), marks) - self._marks_threshold) for tokens, marks in windows
        ]


def pool(evidence: Sequence[float], how: str) -> float:
    """The evidence of a window from that of its tokens: their maximum or mean."""
    if not evidence:
        return 0.0
    return max(evidence) if how == "max" else sum(evidence) / len(evidence)


def marked_mean(evidence: Sequence[float], marks: Marks) -> float:
    """Mean evidence of the marked tokens, 0 without any."""
    marked = [value for value, mark in zip(evidence, marks, strict=True) if mark]
    return sum(marked) / len(marked) if marked else 0.0


def _held_out(windows: Sequence[Labelled], view: str) -> list[tuple[Labelled, list[float]]]:
    """Every window with the evidence of its tokens from a rule learned without it.

    Both classes are spread over the parts that are left out in turn.
    """
    ordered = sorted(windows, key=lambda window: window.holds)
    found = []
    for part in range(_FOLDS):
        evidence = Evidence([window for i, window in enumerate(ordered) if i % _FOLDS != part], view)
        found += [(window, evidence.of(window.tokens)) for window in ordered[part::_FOLDS]]
    return found


def _windows(held_out: Sequence[tuple[Labelled, list[float]]], how: str) -> Scored:
    """Evidence and truth of each window."""
    return [(pool(values, how), window.holds) for window, values in held_out]


def _marks(held_out: Sequence[tuple[Labelled, list[float]]]) -> Scored:
    """Evidence of right marks, in the windows with the latent, and of the other tokens, in all windows."""
    scored: Scored = []
    for window, values in held_out:
        others = [value for value, label in zip(values, window.labels, strict=True) if not label]
        scored += [(sum(others) / len(others), False)] if others else []
        scored += [(marked_mean(values, window.labels), True)] if window.holds else []
    return scored


def _threshold(scored: Scored) -> tuple[float, float]:
    """The best balanced accuracy of a threshold on the evidence, and that threshold.

    It lies in the middle of the widest gap between neighbouring values at which the accuracy is reached.
    """
    positives = sum(truth for _, truth in scored)
    negatives = len(scored) - positives
    ordered = sorted(scored, key=lambda pair: pair[0])
    best, width, threshold = 0.5, 0.0, (ordered[-1][0] + 1.0) if ordered else 0.0
    below = [0, 0]
    for (value, truth), (following, _) in pairwise(ordered):
        below[truth] += 1
        if following == value:
            continue
        accuracy = (below[False] / max(1, negatives) + 1 - below[True] / max(1, positives)) / 2
        if (accuracy, following - value) > (best, width):
            best, width, threshold = accuracy, following - value, (following + value) / 2
    return best, threshold
