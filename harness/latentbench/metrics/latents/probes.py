"""Linear probes on hidden states and on a few latents, and the choice of those latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentbench.metrics.base import Array
from latentbench.sae.codes import Codes

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Labels = NDArray[np.bool_]

_STRENGTH = 1.0
"""Inverse of the L2 penalty, for inputs of unit scale."""
_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """A logistic regression: positive where `x · direction + offset` > 0."""

    direction: Array
    """[features]"""
    offset: float

    def scores(self, x: Array) -> Array:
        """[n] log-odds for x [n, features]."""
        found: Array = x @ self.direction + self.offset
        return found


def fit(x: Array, labels: Labels, per_feature: bool = False) -> Probe:
    """The L2-penalised logistic regression with balanced classes of `labels` [n] on x [n, features].

    Inputs are brought to unit scale before the penalty: as a whole, so that directions keep their meaning, or
    `per_feature`. Both classes must occur.
    """
    from sklearn.linear_model import LogisticRegression

    centre = x.mean(0)
    scale = np.sqrt(((x - centre) ** 2).mean(0 if per_feature else None))
    scale = np.where(scale > 0, scale, 1.0)
    fitted: Any = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=_ITERATIONS)
    fitted.fit((x - centre) / scale, labels)
    direction = fitted.coef_[0] / scale
    return Probe(direction, float(fitted.intercept_[0] - centre @ direction))


def f1(predicted: Labels, labels: Labels) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is positive."""
    hits, wrong = int((predicted & labels).sum()), int((predicted != labels).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def sparse_matrix(codes: Codes, width: int) -> csr_array:
    """Codes of n inputs as a sparse float64 matrix [n, width]."""
    from scipy.sparse import csr_array

    values, indices = codes.values.double().cpu().numpy(), codes.indices.cpu().numpy()
    rows = np.repeat(np.arange(len(values)), values.shape[1])
    made = csr_array((values.ravel(), (rows, indices.ravel())), shape=(len(values), width))
    made.eliminate_zeros()
    return made


def by_mean_difference(latents: csr_array, labels: Labels, k: int) -> NDArray[np.int64]:
    """The k latents with the largest |mean over positives − mean over negatives| (arXiv 2502.16681), largest first."""
    positive, negative = latents[labels].mean(0), latents[~labels].mean(0)
    difference = np.abs(np.asarray(positive - negative).ravel())
    return np.argsort(-difference, kind="stable")[:k]


def columns(latents: csr_array, chosen: NDArray[np.int64]) -> Array:
    """[n, chosen] dense: only ever for a few latents."""
    return np.asarray(latents[:, chosen].todense(), dtype=np.float64)
