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

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from latentbench.core.judges import ActiveWindow, Rule, RuleJudge, WindowMarks, WindowTokens
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json

Features = Iterator[tuple[str, str]]
"""Kind and value, e.g. `("token", " acid")`."""


@dataclass(frozen=True)
class Labelled:
    """A training window: on which tokens the latent is active."""

    tokens: WindowTokens
    labels: WindowMarks

    @property
    def holds(self) -> bool:
        """Whether the latent is active anywhere."""
        return any(self.labels)


def _token(tokens: WindowTokens, i: int) -> Features:
    yield "token", tokens[i]


def _word(tokens: WindowTokens, i: int) -> Features:
    yield "word", tokens[i].strip().lower()


def _shape(tokens: WindowTokens, i: int) -> Features:
    """What kind of characters: `Xx`, `_x`, `9`, punctuation as it is."""
    kinds = ["X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else "_" if c == " " else c
             for c in tokens[i]]  # fmt: skip
    yield "shape", "".join(kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before)


def _before(tokens: WindowTokens, i: int) -> Features:
    yield "before", tokens[i - 1] if i else ""


def _pair(tokens: WindowTokens, i: int) -> Features:
    yield "pair", (tokens[i - 1] if i else "") + tokens[i]


def _earlier(tokens: WindowTokens, i: int) -> Features:
    """Every token further left in the window."""
    for token in dict.fromkeys(tokens[: max(0, i - 1)]):
        yield "earlier", token


_Extractor = Callable[[WindowTokens, int], Features]

VIEWS: dict[str, tuple[_Extractor, ...]] = {
    "token": (_token,),
    "word": (_word,),
    "before": (_before,),
    "token and before": (_token, _before),
    "pair": (_pair, _token),
    "shape": (_shape, _before),
    "context": (_token, _before, _earlier),
}
"""What of a token and the tokens left of it may matter; simpler views come first and win ties."""


class LogOdds:
    """Log-odds weights of one view's features, learned from windows."""

    def __init__(self, windows: Sequence[Labelled], view: str) -> None:
        self.view = view
        self.counts: dict[bool, Counter[tuple[str, str]]] = {True: Counter(), False: Counter()}
        """How many active and inactive tokens have each feature."""
        totals = Counter[bool]()
        for window in windows:
            for label, features in zip(window.labels, _features(window.tokens, view), strict=True):
                self.counts[label].update(features)
                totals[label] += 1
        # Smoothed, so that neither class is empty and its logarithm finite.
        self._base = (totals[True] + 0.5) / (totals[True] + totals[False] + 1)
        seen = self.counts[True].keys() | self.counts[False].keys()
        self.weights = {feature: self._weight(feature) for feature in seen}

    def of(self, tokens: WindowTokens) -> list[float]:
        """The evidence of each token of a window."""
        return [sum(self.weights.get(f, 0.0) for f in features) for features in _features(tokens, self.view)]

    def _weight(self, feature: tuple[str, str]) -> float:
        active, silent, base = self.counts[True][feature], self.counts[False][feature], self._base
        return math.log((active + base) / (silent + 1 - base)) - math.log(base / (1 - base))


@lru_cache(maxsize=4096)
def _features(tokens: WindowTokens, view: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The features of every token of a window; remembered, because cross-validation asks several times."""
    return tuple(
        tuple(feature for extractor in VIEWS[view] for feature in extractor(tokens, i)) for i in range(len(tokens))
    )


def logistic(evidence: float) -> float:
    """1 / (1 + exp(−evidence)), for any size of it."""
    return 0.5 * (1 + math.tanh(evidence / 2))


_NAMED = 6
_WORDS = {
    "token": "on {}",
    "word": "on {}, however written",
    "shape": "on tokens shaped like {}",
    "before": "right after {}",
    "pair": "on the end of {}",
    "earlier": "some tokens after {}",
}
_FEWEST = 1.0
"""Evidence below which a feature is not worth naming."""


def sentence(evidence: LogOdds, pooled: str) -> str:
    """Names the features that speak most for the latent, with how often they were active among all they were seen."""
    parts = [text for kind, template in _WORDS.items() if (text := _part(evidence, kind, template))]
    if not parts:
        return "No token or short context stands out."
    often = "" if pooled == "max" else " often in texts with it"
    return f"Fires{often} {'; '.join(parts)}."


def _part(evidence: LogOdds, kind: str, template: str) -> str:
    strong = [(weight, feature) for feature, weight in evidence.weights.items() if feature[0] == kind]
    named = sorted((pair for pair in strong if pair[0] >= _FEWEST), key=lambda pair: (-pair[0], pair[1]))[:_NAMED]
    return template.format(", ".join(_named(evidence, feature) for _, feature in named)) if named else ""


def _named(evidence: LogOdds, feature: tuple[str, str]) -> str:
    active = evidence.counts[True][feature]
    return f"{feature[1]!r} ({active} of {active + evidence.counts[False][feature]})"


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

    def learn(self, active: Sequence[ActiveWindow], inactive: Sequence[WindowTokens]) -> Rule:
        windows = [Labelled(w.tokens, tuple(value > 0 for value in w.activations)) for w in active]
        windows += [Labelled(tokens, (False,) * len(tokens)) for tokens in inactive]
        held_out = {view: _held_out(windows, view) for view in VIEWS}
        ways = [(view, how, _windows(held_out[view], how)) for view in VIEWS for how in ("max", "mean")]
        view, pooled, scored = max(ways, key=lambda way: _threshold(way[2])[0])
        marks_view, marks = max(((v, _marks(held_out[v])) for v in VIEWS), key=lambda way: _threshold(way[1])[0])
        return LexicalRule(
            LogOdds(windows, view), pooled, _threshold(scored)[1], LogOdds(windows, marks_view), _threshold(marks)[1]
        )


class LexicalRule(Rule):
    """Evidence and thresholds for windows and for marks."""

    def __init__(self, windows: LogOdds, pooled: str, threshold: float, marks: LogOdds, marks_threshold: float) -> None:
        self._windows, self._pooled, self._threshold = windows, pooled, threshold
        self._marks, self._marks_threshold = marks, marks_threshold
        self.explanation = sentence(windows, pooled)

    def detect(self, windows: Sequence[WindowTokens]) -> list[float]:
        return [logistic(pool(self._windows.of(tokens), self._pooled) - self._threshold) for tokens in windows]

    def fuzz(self, windows: Sequence[tuple[WindowTokens, WindowMarks]]) -> list[float]:
        return [
            logistic(marked_mean(self._marks.of(tokens), marks) - self._marks_threshold) for tokens, marks in windows
        ]


def pool(evidence: Sequence[float], how: str) -> float:
    """The evidence of a window from that of its tokens: their maximum or mean."""
    if not evidence:
        return 0.0
    return max(evidence) if how == "max" else sum(evidence) / len(evidence)


def marked_mean(evidence: Sequence[float], marks: WindowMarks) -> float:
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
        evidence = LogOdds([window for i, window in enumerate(ordered) if i % _FOLDS != part], view)
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
