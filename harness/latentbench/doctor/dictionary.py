"""A planted dictionary: hidden states are sparse sums of known unit directions.

The oracle SAE that holds these directions must explain everything and must have exactly the planted L0; a TopK SAE
trained on such states for a few seconds must find most directions, and an untrained one must not. What is compared is
the mean over planted directions of the largest |cosine| with an atom (mean maximum cosine similarity, Sharkey et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentbench.activations.site import Site
from latentbench.doctor.check import Check, Finding, both, close
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.options import TopKOptions
from latentbench.sae.trainee import NativeTrainee
from latentbench.sae.training import TrainingOptions

D, DIRECTIONS, ACTIVE = 32, 48, 3
BATCH, STEPS = 512, 500
FOUND, CHANCE = 0.95, 0.75
"""A trained SAE must be above the one, an untrained one below the other."""


def dictionary_checks() -> list[Check]:
    """The oracle, and training."""
    return [
        Check("a planted dictionary is recognised", "metrics", _oracle),
        Check("a planted dictionary is found by training", "metrics", _trained),
    ]


def planted(seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """Unit directions [DIRECTIONS, D], and the generator for draws."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(DIRECTIONS, D, generator=generator), dim=1), generator


def draw(directions: Tensor, generator: torch.Generator, n: int = BATCH) -> Tensor:
    """[n, D] sums of ACTIVE different directions with strengths in [1, 2]."""
    chosen = torch.rand(n, DIRECTIONS, generator=generator).topk(ACTIVE, dim=1).indices
    strengths = 1 + torch.rand(n, ACTIVE, generator=generator)
    return torch.zeros(n, DIRECTIONS).scatter_(1, chosen, strengths) @ directions


@torch.no_grad()
def recovery(directions: Tensor, sae: SparseAutoencoder) -> float:
    """Mean over directions of the largest |cosine| with an atom."""
    rows = sae.decoder_rows()
    assert rows is not None
    return float((directions @ normalize(rows, dim=1).T).abs().max(dim=1).values.mean())


def _oracle() -> Finding:
    """Directions that are orthogonal, so that one matrix product encodes them exactly."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    sae = TopKOptions(width=D, k=ACTIVE).build(D, generator)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in sae.state_dict().items()}
    sae.load_state_dict(zeros | {"W_dec": basis, "encoder.weight": basis})
    chosen = torch.rand(BATCH, D, generator=generator).topk(ACTIVE, dim=1).indices
    x = torch.zeros(BATCH, D).scatter_(1, chosen, 1 + torch.rand(BATCH, ACTIVE, generator=generator)) @ basis
    with torch.no_grad():
        codes = sae.eval().encode(x)
        lost = (x - sae.decode(codes)).square().sum() / (x - x.mean(0)).square().sum()
    return both(
        close("explained variance of the oracle", 1 - float(lost), 1.0, 1e-6),
        close("its L0", float(codes.l0.double().mean()), ACTIVE, 0.0),
        close("its recovery", recovery(basis, sae), 1.0, 1e-6),
    )


def _trained() -> Finding:
    directions, generator = planted()
    sae = TopKOptions(width=2 * DIRECTIONS, k=ACTIVE).build(D, generator)
    before, first = recovery(directions, sae), draw(directions, generator)
    training = TrainingOptions(batch=BATCH, lr=3e-3)
    norm = float(first.norm(dim=1).mean())
    trainee = NativeTrainee(sae, Site(index=0), training, steps=STEPS, first_norm=norm, mean=first.mean(0))  # type: ignore[arg-type]
    for _ in range(STEPS):
        trainee.step(draw(directions, generator))
    after = recovery(directions, trainee.finish())
    detail = (
        f"mean largest cosine {after:.3f} after {STEPS} steps (needed {FOUND}), {before:.3f} before (at most {CHANCE})"
    )
    return Finding(after >= FOUND and before <= CHANCE, detail)
