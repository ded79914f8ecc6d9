"""Controls: identity, mean, principal components, untrained and random decoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import (
    IdentityOptions,
    MeanOptions,
    PCAOptions,
    RandomDecoderOptions,
    TopKOptions,
    UntrainedOptions,
    Variant,
)
from latentbench.sae.variants.controls import FittedTrainer
from tests.support.trained import SITE, WIDTH, D, K, rng, tokens, trained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_identity_returns_its_input() -> None:
    sae, x = IdentityOptions().build(D, rng()), tokens(9)
    assert torch.equal(sae(x), x)


def fitted(options: Variant, x: Tensor) -> SparseAutoencoder:
    trainer = FittedTrainer(options.build(D, rng()), SITE)  # type: ignore[arg-type]
    for part in x.split(7):
        trainer.step(part)
    return trainer.finish()


def test_mean_control() -> None:
    x = tokens(50)
    sae = fitted(MeanOptions(), x)
    torch.testing.assert_close(sae(x), x.mean(0).expand_as(x))
    assert sae.encode(x).l0.sum() == 0


def test_pca_is_the_best_linear_reconstruction() -> None:
    x = tokens(200)
    centred = (x - x.mean(0)).double()
    singular = torch.linalg.svdvals(centred)
    for k in (1, 5, D):
        sae = fitted(PCAOptions(k=k), x)
        error = (x - sae(x)).double().pow(2).sum()
        torch.testing.assert_close(error, singular[k:].pow(2).sum(), rtol=1e-4, atol=1e-3)
    sae = fitted(PCAOptions(k=6), x)
    torch.testing.assert_close(sae.decode(sae.encode(x, 2)), fitted(PCAOptions(k=2), x)(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInput, match="do not exist"):
        PCAOptions(k=D + 1).build(D, rng())


def test_untrained_control_is_the_initial_top_k() -> None:
    x = tokens(50)
    sae = fitted(UntrainedOptions(width=WIDTH, k=K), x)
    start = TopKOptions(width=WIDTH, k=K).build(D, rng())
    start.begin(x.mean(0), 1.0)
    torch.testing.assert_close(sae(x), start(x))


def test_random_decoder_is_frozen() -> None:
    options = RandomDecoderOptions(width=WIDTH, k=K)
    start, done = options.build(D, rng()), trained(options)
    assert torch.equal(start.W_dec, done.W_dec)
    assert not torch.equal(start.encoder.weight, done.encoder.weight)
    torch.testing.assert_close(start.W_dec.norm(dim=1), torch.ones(WIDTH))
