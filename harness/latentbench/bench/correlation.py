"""KronSAE's toy experiment: do an SAE's atoms show how the true features are correlated? (arXiv 2505.22255, §5.1, App. B)

Features x̄ = L · TopK(ReLU(g)), g ~ N(0, I), with L the Cholesky factor of a block covariance S, are squeezed through a
tied autoencoder x' = ReLU(Wᵀ W x̄ + b); SAEs are trained on its hidden states W x̄. Their atoms' Gram matrix C is matched
to S by a quadratic assignment (FAQ) and scored with RV(S, C) = tr(SC) / √(tr(S²) tr(C²)).

The paper does not say how its blocks are drawn; here they have 4 to 16 features and one correlation from [0.3, 0.9] each.

Both matrices have ones on their diagonals, which dominate RV: atoms at right angles (the identity) score well without
showing any correlation. So there is a second score, RV without the diagonals, and the SAEs are scored before training too:
what they have then is no recovery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import quadratic_assignment
from scipy.stats import t
from torch import Tensor, nn

from latentbench.core.hashing import seed_of
from latentbench.core.sites import Site
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE
from latentbench.sae.options import KronOptions, TopKOptions, Variant
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer

FEATURES, HIDDEN, ACTIVE = 256, 64, 8
BATCH, AE_STEPS, SAE_STEPS = 1024, 2000, 2000
VARIANTS: dict[str, Variant] = {
    "TopK": TopKOptions(width=FEATURES, k=ACTIVE),
    "Kron h=8 m=2 n=16": KronOptions(width=FEATURES, m=2, n=16, k=ACTIVE),
    "Kron h=8 m=4 n=8": KronOptions(width=FEATURES, m=4, n=8, k=ACTIVE),
    "Kron h=4 m=2 n=32": KronOptions(width=FEATURES, m=2, n=32, k=ACTIVE),
    "Kron h=2 m=4 n=32": KronOptions(width=FEATURES, m=4, n=32, k=ACTIVE),
}

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """One score of one kind of model over several covariances."""

    values: tuple[float, ...]

    @property
    def summary(self) -> tuple[float, float]:
        """Mean and standard deviation over covariances."""
        return mean(self.values), stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean over covariances; None for fewer than two."""
        n = len(self.values)
        if n < 2:
            return None
        average, spread = self.summary
        half = float(t.ppf(0.975, n - 1)) * spread / n**0.5
        return average - half, average + half


@dataclass(frozen=True)
class Correlation:
    """How well one kind of model shows the covariances."""

    model: str
    rv: Scores
    off_diagonal: Scores
    """RV without the diagonals, matched without them as well."""


def rv_coefficient(a: Matrix, b: Matrix) -> float:
    """tr(AB) / √(tr(A²) tr(B²)) of two symmetric matrices: 1 when one is a multiple of the other, 0 where one is zero."""
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else 0.0


def without_diagonal(a: Matrix) -> Matrix:
    """The matrix with zeros on its diagonal."""
    return a - np.diag(np.diag(a))


def matched(truth: Matrix, gram: Matrix) -> Matrix:
    """`gram` with rows and columns permuted together so that it resembles `truth` most (FAQ, from its barycentre)."""
    order = quadratic_assignment(truth, gram, method="faq", options={"maximize": True}).col_ind
    return gram[np.ix_(order, order)]


def run(covariances: int = 8, seed: int = 0, steps: int = SAE_STEPS) -> list[Correlation]:
    """The experiment on several covariances: the autoencoder itself, the identity, then every SAE before and after training."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(covariances):
        # A generator per covariance: how many there are changes none of them.
        generator = torch.Generator().manual_seed(seed_of("correlation", seed, number))
        truth = block_covariance(generator)
        for name, pair in _scored(truth, generator, steps):
            found.setdefault(name, []).append(pair)
    columns = {name: tuple(zip(*pairs, strict=True)) for name, pairs in found.items()}
    return [Correlation(name, Scores(rv), Scores(off)) for name, (rv, off) in columns.items()]


def _scored(truth: Tensor, generator: torch.Generator, steps: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """Every row's two scores on one covariance."""
    known, factor = truth.numpy(), torch.linalg.cholesky(truth).float()
    weights = _train_autoencoder(factor, generator)
    # The autoencoder's features are the true ones in their own order, so nothing has to be matched; the identity is
    # the same in every order.
    for name, gram in (("autoencoder", _gram(weights.T)), ("identity", np.eye(FEATURES))):
        yield name, (rv_coefficient(known, gram), rv_coefficient(*map(without_diagonal, (known, gram))))
    for name, options in VARIANTS.items():
        before, after = _train_sae(options, factor, weights, generator, steps)
        for row, atoms in ((f"{name}, untrained", before), (name, after)):
            yield row, _matched_scores(known, _gram(atoms))


def _gram(atoms: Tensor) -> Matrix:
    return (atoms @ atoms.T).double().numpy()


def _matched_scores(truth: Matrix, gram: Matrix) -> tuple[float, float]:
    apart, bare = without_diagonal(truth), without_diagonal(gram)
    return rv_coefficient(truth, matched(truth, gram)), rv_coefficient(apart, matched(apart, bare))


def block_covariance(generator: torch.Generator) -> Tensor:
    """[features, features] float64: ones on the diagonal, one correlation within each block of 4 to 16 features."""
    covariance, start = torch.eye(FEATURES, dtype=torch.float64), 0
    while start < FEATURES:
        end = min(FEATURES, start + int(torch.randint(4, 17, (), generator=generator)))
        covariance[start:end, start:end] = 0.3 + 0.6 * float(torch.rand((), generator=generator))
        start = end
    return covariance.fill_diagonal_(1.0)


def features(factor: Tensor, generator: torch.Generator) -> Tensor:
    """[batch, features] correlated sparse features."""
    drawn = torch.randn(BATCH, FEATURES, generator=generator).relu()
    values, indices = drawn.topk(ACTIVE, dim=1)
    return torch.zeros_like(drawn).scatter_(1, indices, values) @ factor.T


def _train_autoencoder(factor: Tensor, generator: torch.Generator) -> Tensor:
    weights = nn.Parameter(torch.randn(HIDDEN, FEATURES, generator=generator) / HIDDEN**0.5)
    bias = nn.Parameter(torch.zeros(FEATURES))
    adam = torch.optim.Adam([weights, bias], lr=3e-3)
    for _ in range(AE_STEPS):
        x = features(factor, generator)
        loss = (torch.relu(x @ weights.T @ weights + bias) - x).pow(2).sum(1).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return weights.detach()


def _train_sae(
    options: Variant, factor: Tensor, weights: Tensor, generator: torch.Generator, steps: int
) -> tuple[Tensor, Tensor]:
    """Unit atoms [width, hidden] of an SAE before and after training on the autoencoder's hidden states."""
    sae = options.build(HIDDEN, generator)
    assert isinstance(sae, TrainableSAE)
    before = _atoms(sae)
    first = features(factor, generator) @ weights.T
    training = TrainingOptions(batch=BATCH)
    norm = float(first.norm(dim=1).mean())
    trainer = NativeTrainer(sae, Site(index=0), training, steps=steps, first_norm=norm, mean=first.mean(0))
    for _ in range(steps):
        trainer.step(features(factor, generator) @ weights.T)
    return before, _atoms(trainer.finish())


def _atoms(sae: SparseAutoencoder) -> Tensor:
    rows = sae.decoder_rows()
    assert rows is not None
    return nn.functional.normalize(rows.detach().clone(), dim=1)
