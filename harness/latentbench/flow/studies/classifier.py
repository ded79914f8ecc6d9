"""Which domain a text is of, by its tokens: multinomial naive Bayes, deterministic and trained in a moment.

log P(domain | text) = log P(domain) + Σ_v n_v log((c_v + 1) / (Σ c + V)) + const, with token counts c of the domain's
training documents over a vocabulary of V; priors are equal, because domains' sizes are a matter of the spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentbench.metrics.base import Array

Text = NDArray[np.int64]
"""Token ids of one text, without special tokens."""


@dataclass(frozen=True)
class DomainClassifier:
    """A trained classifier."""

    domains: tuple[str, ...]
    weights: Array
    """[domains, vocabulary] log probability of each token."""

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
