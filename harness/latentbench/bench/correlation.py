"""KronSAE's toy experiment: do an SAE's atoms show how the true features are correlated? (arXiv 2505.22255, §5.1, App. B)

Features x̄ = L · TopK(ReLU(g)), g ~ N(0, I), with L the Cholesky factor of a block covariance S, are squeezed through a
tied autoencoder x' = ReLU(Wᵀ W x̄ + b); SAEs are trained on its hidden states W x̄. Their atoms' Gram matrix C is matched
to S by a quadratic assignment (FAQ) and scored with RV(S, C) = tr(SC) / √(tr(S²) tr(C²)).

The paper does not say how its blocks are drawn; here they have 4 to 16 features and one correlation from [0.3, 0.9] each.
"""

from __future__ import annotations

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
from latentbench.sae.autoencoder import TrainableSAE
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
class Correlation:
    """RV coefficients of one kind of model over several covariances."""

    model: str
    scores: tuple[float, ...]

    @property
    def summary(self) -> tuple[float, float]:
        """Mean and standard deviation over covariances."""
        return mean(self.scores), stdev(self.scores) if len(self.scores) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean over covariances; None for fewer than two."""
        n = len(self.scores)
        if n < 2:
            return None
        average, spread = self.summary
        half = float(t.ppf(0.975, n - 1)) * spread / n**0.5
        return average - half, average + half


def rv_coefficient(a: Matrix, b: Matrix) -> float:
    """tr(AB) / √(tr(A²) tr(B²)) of two symmetric matrices: 1 when one is a multiple of the other."""
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def matched(truth: Matrix, gram: Matrix) -> Matrix:
    """`gram` with rows and columns permuted together so that it resembles `truth` most (FAQ, from its barycentre)."""
    order = quadratic_assignment(truth, gram, method="faq", options={"maximize": True}).col_ind
    return gram[np.ix_(order, order)]


def run(covariances: int = 8, seed: int = 0, steps: int = SAE_STEPS) -> list[Correlation]:
    """The experiment on several covariances: the autoencoder itself, then every SAE."""
    scores: dict[str, list[float]] = {"autoencoder": [], **{name: [] for name in VARIANTS}}
    for number in range(covariances):
        generator = torch.Generator().manual_seed(seed_of("correlation", seed, number))
        truth = block_covariance(generator)
        factor = torch.linalg.cholesky(truth).float()
        weights = _train_autoencoder(factor, generator)
        scores["autoencoder"].append(rv_coefficient(truth.numpy(), (weights.T @ weights).double().numpy()))
        for name, options in VARIANTS.items():
            atoms = _train_sae(options, factor, weights, generator, steps)
            gram = (atoms @ atoms.T).double().numpy()
            scores[name].append(rv_coefficient(truth.numpy(), matched(truth.numpy(), gram)))
    return [Correlation(name, tuple(values)) for name, values in scores.items()]


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


def _train_sae(options: Variant, factor: Tensor, weights: Tensor, generator: torch.Generator, steps: int) -> Tensor:
    """Unit atoms [width, hidden] of an SAE trained on the autoencoder's hidden states."""
    sae = options.build(HIDDEN, generator)
    assert isinstance(sae, TrainableSAE)
    first = features(factor, generator) @ weights.T
    training = TrainingOptions(batch=BATCH)
    norm = float(first.norm(dim=1).mean())
    trainer = NativeTrainer(sae, Site(index=0), training, steps=steps, first_norm=norm, mean=first.mean(0))
    for _ in range(steps):
        trainer.step(features(factor, generator) @ weights.T)
    rows = trainer.finish().decoder_rows()
    assert rows is not None
    return nn.functional.normalize(rows, dim=1)
