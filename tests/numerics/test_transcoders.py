"""Transcoders: gradients against float64 formulas, where they read, what their numbers mean, and which specs may have one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig

from latentbench.activations.capture import hidden_states
from latentbench.activations.residual import hook_point
from latentbench.activations.resume import resumed_logits
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site, resumed_from, written_at
from latentbench.reconstruction.shared_pass import MeasurementRequest, measure
from latentbench.sae.autoencoder import Codes
from latentbench.sae.linear import linear_weights
from latentbench.sae.options import TranscoderOptions
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.sources.base import hook_name, site_of
from latentbench.sae.trainer import NativeTrainer
from latentbench.sae.variants.transcoder import Transcoder
from tests.numerics.test_measure import GEMMA
from tests.numerics.test_sae_gradients import Weights, assert_same, auxk, kept
from tests.support.passes import LM, MLP, TOKENS, ToySAE, flat, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

D, WIDTH, K, N = 12, 48, 5, 33
PAIR = Site(index=1, point="mlp")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(n: int = N, dtype: torch.dtype = torch.float64) -> Tensor:
    """[n, 2 D]: inputs, and what a small MLP far off scale makes of them."""
    x = torch.randn(n, D, generator=rng(5), dtype=dtype)
    one, two = (torch.randn(a, b, generator=rng(6), dtype=dtype) for a, b in ((D, 40), (40, D)))
    return torch.cat([x * 3 + 0.4, 0.01 * torch.relu(x @ one) @ two + 0.02], 1)


def made(skip: bool) -> Transcoder:
    sae = TranscoderOptions(width=WIDTH, k=K, skip=skip, aux_k=4, aux_coefficient=0.7).build(D, rng())
    assert isinstance(sae, Transcoder)
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng(1))
    return sae.double()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dead_count", [0, 6])
def test_gradients_of_a_transcoder(skip: bool, dead_count: int) -> None:
    sae, x, dead = made(skip), pairs(), torch.arange(WIDTH) < dead_count
    sae.loss(x, dead, 0, 10)  # the first step measures the two sides
    mean_norms = torch.stack([x[:, :D].norm(dim=1).mean(), x[:, D:].norm(dim=1).mean()])
    torch.testing.assert_close(sae.gains, math.sqrt(D) / mean_norms)
    given, target = x[:, :D] * sae.gains[0], x[:, D:] * sae.gains[1]

    def reference(w: Weights) -> Tensor:
        latents = (given @ w["encoder.weight"].t() + w["encoder.bias"]).relu()
        left = target - given @ w["W_skip"].t() if skip else target
        codes = kept(latents, K)
        fit = (left - codes @ w["W_dec"] - w["b_dec"]).pow(2).sum(1).mean()
        return fit + 0.7 * auxk(latents, w, left.detach(), codes, dead, min(4, dead_count)) if dead_count else fit

    assert_same(sae, sae.loss(x, dead, 1, 10).total, reference)


@pytest.mark.parametrize("skip", [False, True])
def test_folding_gives_what_training_saw_on_raw_hidden_states(skip: bool) -> None:
    sae, x, scale = made(skip), pairs(), 0.37
    sae.loss(x * scale, torch.zeros(WIDTH, dtype=torch.bool), 0, 10)
    wanted, codes = sae(x * scale) / (scale * sae.gains[1]), sae.encode(x * scale)
    sae.fold_input_scale(scale)
    torch.testing.assert_close(sae(x), wanted)
    torch.testing.assert_close(sae.compared(x), x[:, D:])
    assert torch.equal(sae.encode(x).indices, codes.indices)
    torch.testing.assert_close(sae(x), sae.reconstruct(x[:, :D], sae.encode(x[:, :D])))


@pytest.mark.parametrize("skip", [False, True])
def test_a_trained_transcoder_predicts_what_is_added_and_the_curve_is_relative_to_it(skip: bool) -> None:
    x = pairs(256, torch.float32)
    sae = TranscoderOptions(width=WIDTH, k=K, skip=skip).build(D, rng())
    assert isinstance(sae, Transcoder)
    steps, norm = 150, float(x.norm(dim=1).mean())
    recipe = TrainingOptions(batch=256, buffer=256, lr=5e-3)
    trainer = NativeTrainer(sae, PAIR, recipe, steps=steps, first_norm=norm, mean=x.mean(0))
    for _ in range(steps):
        trainer.step(x)
    last = trainer.curve[-1][2]
    finished = trainer.finish()
    y = x[:, D:]
    unexplained = float((y - finished(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum())
    assert unexplained < 0.5
    assert unexplained == pytest.approx(last, rel=0.1)
    assert (finished.encode(x).l0 <= K).all()


def test_it_cannot_stand_below_another_sae() -> None:
    with pytest.raises(InvalidInput, match="a transcoder is no SAE"):
        linear_weights(made(False))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()


def test_the_pair_is_what_the_mlp_is_given_and_what_it_adds(model: nn.Module) -> None:
    ids = torch.randint(0, 50, (2, 7), generator=rng())
    part = Site(index=1, point="mlp_out")
    states = hidden_states(model, [PAIR, part], ids)
    width = states[part].shape[-1]
    assert torch.equal(states[PAIR][..., width:], states[part])
    mlp = model.get_submodule("model.layers.1.mlp")
    torch.testing.assert_close(mlp(states[PAIR][..., :width]), states[part])
    assert torch.equal(hidden_states(model, [PAIR], ids)[PAIR], states[PAIR])


def test_a_perfect_transcoder_changes_no_logits_and_nothing_writes_to_both_sides(model: nn.Module) -> None:
    ids = torch.randint(0, 50, (2, 7), generator=rng())
    entrance = resumed_from(PAIR)
    states = hidden_states(model, [PAIR, *entrance], ids)
    added = states[PAIR].chunk(2, -1)[1]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        found = resumed_logits(model, written_at(PAIR), added, ids, None, states[entrance[0]])
    torch.testing.assert_close(found, wanted)
    with pytest.raises(InvalidInput, match="write to `mlp_out`"):
        hook_point(model, PAIR).written(added, added)


class Latter(ToySAE):
    """Reads pairs, and makes of what the MLP adds what `ToySAE` makes of it."""

    paired = True

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return super().encode(x[:, self.d_in :], budget)


class Perfect(Latter):
    """Runs the MLP itself, beside latents that count for nothing."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def reconstruct(self, x: Tensor, codes: Codes) -> Tensor:
        made: Tensor = self.mlp(x[:, : self.d_in])
        return made


@pytest.mark.parametrize("config", [None, GEMMA], ids=["llama", "norm behind the mlp"])
def test_numbers_at_the_pair_are_those_of_what_the_mlp_adds(config: PretrainedConfig | None) -> None:
    """Every statistic of the site and the SAE, spliced ones too, is exactly that of an SAE at `mlp_out`."""
    lm = language_model(config)
    one = measure(lm, TOKENS, [MeasurementRequest("a", Latter(), PAIR, (None, 2), splice=True)])
    two = measure(lm, TOKENS, [MeasurementRequest("a", ToySAE(), MLP, (None, 2), splice=True)])
    assert not one.failures
    assert not two.failures
    wanted = {name.replace(str(MLP), str(PAIR)): value for name, value in flat(two).items()}
    assert flat(one).keys() == wanted.keys()
    for name, value in flat(one).items():
        assert np.array_equal(value, wanted[name]), name


def test_a_perfect_transcoder_explains_everything_and_costs_the_model_nothing() -> None:
    mlp = LM.model.get_submodule("model.layers.1.mlp")
    (found,) = measure(LM, TOKENS, [MeasurementRequest("a", Perfect(mlp), PAIR, splice=True)]).measurements
    (base,) = measure(LM, TOKENS, sites=[PAIR], splice_sites=[PAIR]).baselines.values()
    assert found.statistics["squared_error"].sum() <= 1e-10 * base.statistics["total_variance"].sum()
    np.testing.assert_allclose(found.statistics["ce_sae"], base.statistics["ce_clean"], rtol=1e-5)
    assert np.abs(found.statistics["kl_sae"]).max() <= 1e-6 < base.statistics["kl_zero"].max()


def test_the_place_is_written_with_an_exported_transcoder_and_read_back() -> None:
    assert site_of(hook_name(PAIR)) == (1, "mlp")
    assert site_of("blocks.1.mlp.hook_post") != (1, "mlp")


def test_transcoders_and_saes_are_refused_at_each_others_places() -> None:
    for sae, site, said in ((ToySAE(), PAIR, "is read by transcoders"), (Latter(), MLP, "is read by SAEs")):
        failure = measure(LM, TOKENS, [MeasurementRequest("a", sae, site)]).failures["a"]
        assert said in str(failure)
