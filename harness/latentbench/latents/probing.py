"""The study `sparse_probing` (sparse_probing.py): documents as mean codes, and probes for the domain that each is from.

The linear probes and the choice of latents serve the first-letter task too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentbench.activations.tokens import EvalTokens, units_together
from latentbench.core.errors import CellFailed
from latentbench.latents.encoding import Encoded, encoded_domain
from latentbench.latents.sparse_probing import CORRECT_RESIDUAL, DOMAIN, WEIGHT, SparseProbing, correct_from
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.statistics.units import Units
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from latentbench.study.context import StageContext

Labels = NDArray[np.bool_]

_STRENGTH = 1.0
"""Inverse of the L2 penalty, for inputs of unit scale."""
_ITERATIONS = 1000


def measure_sparse_probing(study: SparseProbing, context: StageContext) -> Findings:
    """Tells the domains apart from every number of latents. Raises CellFailed for domains of too few documents."""
    domains, sae = study.domains(context.experiment), context.sae
    tokens = [context.tokens(name) for name in domains]
    pooled = [
        documents_of(encoded_domain(context, name), len(part.ids), sae)
        for name, part in zip(domains, tokens, strict=True)
    ]
    data = ProbedDocuments.joined(pooled, tokens)
    if problem := data.problem():
        raise CellFailed(f"sparse_probing: {problem}")
    correct = {correct_from(k): data.correct(k) for k in dict.fromkeys(study.k)}
    correct[CORRECT_RESIDUAL] = data.correct(None)
    weight = data.weights()
    weighted = {name: hits * weight for name, hits in correct.items()}
    units = {} if data.units is None else {DOMAIN: data.units.of(data.held_out)}
    return Findings({DOMAIN: {**weighted, WEIGHT: weight}}, units=units)


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


def fit(x: Array, labels: Labels, per_feature: bool = False, strength: float = _STRENGTH) -> Probe:
    """The L2-penalised logistic regression with balanced classes of `labels` [n] on x [n, features].

    Inputs are brought to unit scale before the penalty: as a whole, so that directions keep their meaning, or
    `per_feature`. `strength` is the inverse of the penalty. Both classes must occur.
    """
    from sklearn.linear_model import LogisticRegression

    centre = x.mean(0)
    scale = np.sqrt(((x - centre) ** 2).mean(0 if per_feature else None))
    scale = np.where(scale > 0, scale, 1.0)
    fitted: Any = LogisticRegression(C=strength, class_weight="balanced", max_iter=_ITERATIONS)
    fitted.fit((x - centre) / scale, labels)
    # Back to the units of x: w·(x − c)/s + b = (w/s)·x + b − c·(w/s).
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


MIN_DOCUMENTS = 4
"""Fewest documents of a domain in either half."""


@dataclass(frozen=True)
class PooledDocuments:
    """One domain's documents."""

    latents: csr_array
    """[documents, width] mean activation per ordinary token."""
    states: Array
    """[documents, d_in] mean hidden state of the ordinary tokens."""


@dataclass(frozen=True)
class ProbedDocuments:
    """The documents of all domains."""

    latents: csr_array
    states: Array
    held_out: Labels
    """[documents] whether it is tested on; by its content, so the same in every row, and the same for its repeats."""
    domain: NDArray[np.int64]
    """[documents] number of its domain."""
    units: Units | None = None
    """Which documents are one, over all domains; None: all differ."""

    @staticmethod
    def joined(parts: Sequence[PooledDocuments], tokens: Sequence[EvalTokens]) -> ProbedDocuments:
        """Documents of domain 0, 1, …, with the tokens they were pooled from."""
        from scipy.sparse import csr_array, vstack

        units = units_together(tokens)
        digests = units.shared([digest for part in tokens for digest in part.digests])
        return ProbedDocuments(
            csr_array(vstack([part.latents for part in parts])),
            np.concatenate([part.states for part in parts]),
            np.array([held_out(digest) for digest in digests]),
            np.repeat(np.arange(len(parts)), [len(part.states) for part in parts]),
            units,
        )

    def distinct(self, chosen: Labels) -> int:
        """How many of the chosen documents [documents] differ."""
        return int(chosen.sum()) if self.units is None else len(self.units.of(chosen))

    def problem(self) -> str | None:
        """Why these documents cannot be used, if so."""
        for number in range(self.domain.max() + 1):
            ours = self.domain == number
            if min(self.distinct(ours & half) for half in (self.held_out, ~self.held_out)) < MIN_DOCUMENTS:
                count = self.distinct(ours)
                return f"domain {number + 1} has too few documents: {count}, which leaves less than {MIN_DOCUMENTS} in a half"
        return None

    def correct(self, k: int | None) -> Array:
        """[held-out documents] 1 where it is given to its own domain, from k latents (None: all of the hidden state)."""
        scores = [self._scores(self.domain == number, k) for number in range(self.domain.max() + 1)]
        given = np.stack(scores, 1).argmax(1)
        return np.asarray(given == self.domain[self.held_out], dtype=np.float64)

    def weights(self) -> Array:
        """[held-out documents] so that every domain counts the same: 1 / (C · held-out documents of its domain)."""
        domain = self.domain[self.held_out]
        counts = np.bincount(domain)
        return np.asarray(1.0 / (len(counts) * counts[domain]))

    def _scores(self, ours: Labels, k: int | None) -> Array:
        train = ~self.held_out
        x = self.states if k is None else self._strongest(ours, k)
        return fit(x[train], ours[train], per_feature=True).scores(x[self.held_out])

    def _strongest(self, ours: Labels, k: int) -> Array:
        train = ~self.held_out
        return columns(self.latents, by_mean_difference(self.latents[train], ours[train], k))


def documents_of(parts: Iterable[Encoded], documents: int, sae: SparseAutoencoder) -> PooledDocuments:
    """One domain's `documents`, in their order, from one pass in which an SAE encodes them."""
    from scipy.sparse import csr_array

    rows: list[NDArray[np.int64]] = []
    latents: list[NDArray[np.int64]] = []
    values: list[Array] = []
    states = np.zeros((documents, sae.d_in))
    for part in parts:
        row, latent, mean = _mean_codes(part, sae.width)
        rows.append(row)
        latents.append(latent)
        values.append(mean)
        states[part.batch.documents.numpy()] = _mean_states(part)
    cells = np.concatenate(rows), np.concatenate(latents)
    pooled = csr_array((np.concatenate(values), cells), shape=(documents, sae.width))
    return PooledDocuments(pooled, states)


def held_out(digest: str) -> bool:
    """Whether a document is in the half that is tested on."""
    return hashlib.sha256(f"sparse_probing/{digest}".encode()).digest()[0] % 2 == 1


def _mean_codes(part: Encoded, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """(documents, latents, mean activation per token), one entry per pair that occurs."""
    active = part.codes.values != 0
    owner = part.batch.rows[:, None].expand_as(part.codes.indices)[active]
    pairs, place = torch.unique(owner * width + part.codes.indices[active], return_inverse=True)
    sums = torch.zeros(len(pairs), dtype=torch.float64, device=pairs.device)
    sums.index_add_(0, place, part.codes.values[active].double())
    row = pairs // width
    means = sums / part.batch.ordinary.sum(1)[row]
    return part.batch.documents.numpy()[row.cpu().numpy()], (pairs % width).cpu().numpy(), means.cpu().numpy()


def _mean_states(part: Encoded) -> Array:
    counts = part.batch.ordinary.sum(1)
    sums = torch.zeros(len(counts), part.states.shape[1], dtype=torch.float64, device=part.states.device)
    sums.index_add_(0, part.batch.rows, part.states.double())
    means: Array = (sums / counts.clamp_min(1)[:, None]).cpu().numpy()
    return means
