"""How strongly the features of tokens speak for a latent: what the lexical judge learns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from latentbench_adapters.judges.rules import Marks, Tokens

Features = Iterator[tuple[str, str]]
"""Kind and value, e.g. `("token", " acid")`."""


@dataclass(frozen=True)
class Labelled:
    """A training window: on which tokens the latent is active."""

    tokens: Tokens
    labels: Marks

    @property
    def holds(self) -> bool:
        """Whether the latent is active anywhere."""
        return any(self.labels)


def _token(tokens: Tokens, i: int) -> Features:
    yield "token", tokens[i]


def _word(tokens: Tokens, i: int) -> Features:
    yield "word", tokens[i].strip().lower()


def _shape(tokens: Tokens, i: int) -> Features:
    """What kind of characters: `Xx`, `_x`, `9`, punctuation as it is."""
    kinds = ["X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else "_" if c == " " else c
             for c in tokens[i]]  # fmt: skip
    yield "shape", "".join(kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before)


def _before(tokens: Tokens, i: int) -> Features:
    yield "before", tokens[i - 1] if i else ""


def _pair(tokens: Tokens, i: int) -> Features:
    yield "pair", (tokens[i - 1] if i else "") + tokens[i]


def _earlier(tokens: Tokens, i: int) -> Features:
    """Every token further left in the window."""
    for token in dict.fromkeys(tokens[: max(0, i - 1)]):
        yield "earlier", token


_Extractor = Callable[[Tokens, int], Features]

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


class Evidence:
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
        self._base = (totals[True] + 0.5) / (totals[True] + totals[False] + 1)
        seen = self.counts[True].keys() | self.counts[False].keys()
        self.weights = {feature: self._weight(feature) for feature in seen}

    def of(self, tokens: Tokens) -> list[float]:
        """The evidence of each token of a window."""
        return [sum(self.weights.get(f, 0.0) for f in features) for features in _features(tokens, self.view)]

    def _weight(self, feature: tuple[str, str]) -> float:
        active, silent, base = self.counts[True][feature], self.counts[False][feature], self._base
        return math.log((active + base) / (silent + 1 - base)) - math.log(base / (1 - base))


@lru_cache(maxsize=4096)
def _features(tokens: Tokens, view: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The features of every token of a window; remembered, because cross-validation asks several times."""
    return tuple(
        tuple(feature for extractor in VIEWS[view] for feature in extractor(tokens, i)) for i in range(len(tokens))
    )


def logistic(evidence: float) -> float:
    """1 / (1 + exp(−evidence)), for any size of it."""
    return 0.5 * (1 + math.tanh(evidence / 2))
