"""How generated texts are scored: by a classifier of domains, and by a judge (after Feature Flow, arXiv 2502.03032, App. B).

`DomainClassifier` tells a text's domain by its tokens: multinomial naive Bayes, deterministic and trained in a moment.
log P(domain | text) = log P(domain) + Σ_v n_v log((c_v + 1) / (Σ c + V)) + const, with token counts c of the domain's
training documents over a vocabulary of V; priors are equal, because domains' sizes are a matter of the spec.

`rated` asks a judge how much of a theme is in texts, and whether they make sense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentbench.autointerp.ratings import ratings
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge
from latentbench.statistics.arrays import Array

Text = NDArray[np.int64]
"""Token ids of one text, without special tokens."""


@dataclass(frozen=True)
class DomainClassifier:
    """A trained classifier."""

    domains: tuple[str, ...]
    weights: Array
    """[domains, vocabulary] log probability of each token; summed over a text's tokens log P(domain | text) but for a
    constant."""

    @staticmethod
    def trained(texts: Mapping[str, Sequence[Text]], vocabulary: int) -> DomainClassifier:
        """From the training texts of each domain."""
        counts = np.stack([_counts(domain, vocabulary) for domain in texts.values()]) + 1.0
        return DomainClassifier(tuple(texts), np.log(counts / counts.sum(1, keepdims=True)))

    def classify(self, text: Text) -> str:
        """The most probable domain; of equal ones, and for a text without tokens, the first."""
        return self.domains[int(self.weights[:, text].sum(1).argmax())]

    def accuracy(self, texts: Mapping[str, Sequence[Text]]) -> tuple[float, int]:
        """Share of texts given their own domain, each domain weighing alike, and the number of texts."""
        shares = [np.mean([self.classify(text) == name for text in found]) for name, found in texts.items() if found]
        return float(np.mean(shares)), sum(map(len, texts.values()))


def _counts(texts: Sequence[Text], vocabulary: int) -> Array:
    return np.bincount(np.concatenate(texts), minlength=vocabulary).astype(np.float64)


_TOP = 5
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
    scores = {
        name: ratings(texts, [question.format(theme=theme)] * len(texts), INSTRUCTION, _TOP, judge, roots, cache)
        for name, question in QUESTIONS.items()
    }
    behaviour, coherence = scores["behaviour"], scores["coherence"]
    judged = np.isfinite(behaviour) & np.isfinite(coherence)
    total = (1 - behaviour if remove else behaviour) * coherence
    named = {"behaviour": behaviour, "coherence": coherence, "total": total}
    return {**{name: np.where(judged, x, 0.0) for name, x in named.items()}, "judged": judged.astype(np.float64)}
