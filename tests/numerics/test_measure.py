"""Statistics of a pass against plain, slow definitions, and their independence of company and batching."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma2Config, GPTNeoXConfig

from latentbench.activations import batching
from latentbench.activations.blocks import decoder_blocks, submodule
from latentbench.activations.tokens import EvalTokens
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.metrics.base import SHARED
from latentbench.reconstruction import predictions
from latentbench.reconstruction.shared_pass import MeasurementRequest, PassResults, measure
from latentbench.reconstruction.statistics import Baseline
from latentbench.sae.autoencoder import Codes
from tests.support.memory import little_memory
from tests.support.passes import (
    ATTENTION,
    LAST,
    LM,
    MASSIVE,
    MIDDLE,
    MLP,
    NAMED,
    TOKENS,
    VOCABULARY,
    D,
    Identity,
    ToySAE,
    flat,
    language_model,
    planted,
    requests,
)


def plain_statistics(
    lm: LanguageModel, tokens: EvalTokens, site: Site, sae: ToySAE, budget: int | None, rule: TokenRule = EVERY_TOKEN
):
    """The definitions in harness/latentbench/reconstruction/statistics.py, one document at a time, with ordinary forward hooks."""
    target = submodule(decoder_blocks(lm.model)[site.index], site)

    def run(ids: Tensor, change=None) -> tuple[Tensor, Tensor]:
        seen = []

        def hook(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            seen.append(hidden)
            new = hidden if change is None else change(hidden)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = target.register_forward_hook(hook)
        logits = lm.model(input_ids=ids[None], use_cache=False).logits[0]
        handle.remove()
        return seen[0][0], logits.double().log_softmax(-1)

    rows = [tokens.ids[n, : tokens.lengths[n]].long() for n in range(len(tokens.ids))]
    words = [~torch.isin(ids, torch.tensor([0, 1])) for ids in rows]
    named = [torch.isin(ids, torch.tensor([int(name[1:]) for name in rule.named])) for ids in rows]
    clean = [run(ids) for ids in rows]
    keep = [w & ~n for w, n in zip(words, named, strict=True)]
    found = sorted(float(v.norm()) for (hidden, _), k in zip(clean, keep, strict=True) for v in hidden[k].double())
    limit = np.inf if rule.multiple is None else rule.multiple * found[(len(found) - 1) // 2]
    massive = [(hidden.double().norm(dim=1) > limit) & k for (hidden, _), k in zip(clean, keep, strict=True)]
    keep = [k & ~m for k, m in zip(keep, massive, strict=True)]
    x = [hidden[k].double() for (hidden, _), k in zip(clean, keep, strict=True)]
    codes = [sae.encode(hidden[k], budget) for (hidden, _), k in zip(clean, keep, strict=True)]
    reconstruction = [sae.decode(c).double() for c in codes]
    mean, mean_error = torch.cat(x).mean(0), (torch.cat(x) - torch.cat(reconstruction)).mean(0)

    def document(n: int) -> dict[str, float]:
        ids, xs, hats = rows[n], x[n], reconstruction[n]
        error, predictions = xs - hats, len(ids) - 1

        def substituted(new: Tensor) -> tuple[float, float]:
            def change(hidden):
                changed = hidden.clone()
                changed[0, keep[n]] = new.float()
                return changed

            _, log_p = run(ids, change)
            ce = -log_p[torch.arange(predictions), ids[1:]].sum()
            kl = (clean[n][1].exp() * (clean[n][1] - log_p))[:-1].sum()
            return float(ce), float(kl)

        (ce_zero, kl_zero), (ce_mean, kl_mean) = substituted(torch.zeros_like(xs)), substituted(mean.expand_as(xs))
        ce_sae, kl_sae = substituted(hats)
        ratios = 1 - error.square().sum(1) / (xs - mean).square().sum(1)
        return {
            "massive": massive[n].sum(), "named": (named[n] & words[n]).sum(),
            "tokens": len(xs), "elements": xs.numel(), "predictions": predictions,
            "squared_norm": xs.square().sum(), "total_variance": (xs - mean).square().sum(),
            "ce_clean": -clean[n][1][torch.arange(predictions), ids[1:]].sum(),
            "ce_zero": ce_zero, "ce_mean": ce_mean, "ce_sae": ce_sae,
            "kl_zero": kl_zero, "kl_mean": kl_mean, "kl_sae": kl_sae,
            "squared_error": error.square().sum(), "residual_variance": (error - mean_error).square().sum(),
            "token_ratio": ratios.sum(), "cosine": F.cosine_similarity(xs, hats).sum(),
            "norm_ratio": (hats.norm(dim=1) / xs.norm(dim=1)).sum(), "l0": codes[n].l0.sum(),
        }  # fmt: skip

    with torch.no_grad():
        per_document = [document(n) for n in range(len(rows))]
    statistics = {name: np.array([float(d[name]) for d in per_document]) for name in per_document[0]}
    return statistics, mean.numpy(), sum(c.firing_counts(sae.width) for c in codes).numpy()


GEMMA = Gemma2Config(
    vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, sliding_window=4, pad_token_id=1,
)  # fmt: skip
NEOX = GPTNeoXConfig(
    vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
)


@pytest.mark.parametrize("budget", [None, 2])
@pytest.mark.parametrize(
    ("config", "site"), [(None, MIDDLE), (None, LAST), (None, MLP), (GEMMA, ATTENTION), (NEOX, MIDDLE), (NEOX, MLP)]
)
def test_statistics_are_what_their_definitions_say(config, site: Site, budget: int | None) -> None:
    lm, sae = language_model(config), ToySAE()
    with torch.no_grad():
        expected, mean, firing = plain_statistics(lm, TOKENS, site, sae, budget)
    results = measure(lm, TOKENS, [MeasurementRequest("sae", sae, site, (budget,), splice=True)], forward_tokens=40)
    baseline, measurement = results.baselines[site], results.measurements[0]
    got = baseline.statistics | {name.split("@")[0]: v for name, v in measurement.statistics.items()}
    assert set(got) == set(expected)
    assert set(baseline.statistics) == SHARED
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=2e-5, atol=2e-5, err_msg=name)
        assert got[name].dtype == np.float64
    np.testing.assert_allclose(baseline.mean, mean, rtol=1e-5, atol=1e-6)
    assert measurement.firing.tolist() == firing.tolist()
    assert all(("@2" in name) == (budget == 2) for name in measurement.statistics)


RULES = [TokenRule(10.0), TokenRule(10.0, (f"w{NAMED}", "w0")), TokenRule(None, (f"w{NAMED}",)), EVERY_TOKEN]


@pytest.mark.parametrize("rule", RULES, ids=["massive", "both", "named", "keep"])
@pytest.mark.parametrize(("config", "site"), [(None, MIDDLE), (None, MLP), (GEMMA, LAST), (NEOX, MIDDLE)])
def test_massive_and_named_tokens_are_in_no_statistic_and_keep_their_states(
    config, site: Site, rule: TokenRule
) -> None:
    lm, sae = planted(config), ToySAE()
    with torch.no_grad():
        expected, mean, firing = plain_statistics(lm, TOKENS, site, sae, None, rule)
    asked = [MeasurementRequest("sae", sae, site, splice=True)]
    results = measure(lm, TOKENS, asked, forward_tokens=40, rule=rule)
    baseline, measurement = results.baselines[site], results.measurements[0]
    got = baseline.statistics | measurement.statistics
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=2e-5, atol=2e-5 * np.abs(values).max(), err_msg=name)
    np.testing.assert_allclose(baseline.mean, mean, rtol=1e-5, atol=1e-6)
    assert measurement.firing.tolist() == firing.tolist()
    # The planted word is in the residual stream and not in what an MLP adds to it.
    planted_ones = int((TOKENS.ids == MASSIVE).sum()) if rule.multiple and site is not MLP else 0
    assert baseline.statistics["massive"].sum() == planted_ones
    again = measure(lm, TOKENS, asked, baselines=results.baselines, rule=rule).measurements[0]
    for name, values in again.statistics.items():  # limits of a baseline that is known are not estimated anew
        np.testing.assert_allclose(values, measurement.statistics[name], rtol=1e-5, atol=1e-5)
    alone = measure(lm, TOKENS, sites=[site], splice_sites=[site], rule=rule).baselines[site]
    assert alone.limit == baseline.limit or rule.multiple is None
    stored = Baseline.from_tensors(*baseline.to_tensors())
    assert stored.limit == baseline.limit or rule.multiple is None


def test_nothing_is_massive_where_nothing_is_ordinary() -> None:
    only = EvalTokens(torch.tensor([[0, 1, 1]], dtype=torch.int32), torch.tensor([2]), ("0" * 16,), 0)
    baseline = measure(LM, only, sites=[MIDDLE], rule=TokenRule(10.0)).baselines[MIDDLE]
    assert (baseline.statistics["tokens"].sum(), baseline.limit.length) == (0, np.inf)


def test_an_identity_loses_nothing() -> None:
    results = measure(LM, TOKENS, [MeasurementRequest("identity", Identity(), site, splice=True) for site in [MLP]])
    baseline, measured = results.baselines[MLP].statistics, results.measurements[0].statistics
    assert (measured["ce_sae"] == baseline["ce_clean"]).all()
    assert (measured["kl_sae"] == 0).all()
    assert (measured["squared_error"] == 0).all()
    assert measured["cosine"].sum() == pytest.approx(baseline["tokens"].sum(), rel=1e-6)


@pytest.mark.parametrize("logits_at_once", [2**28, 40 * VOCABULARY], ids=["small", "large-vocabulary"])
def test_numbers_do_not_depend_on_what_else_is_measured(logits_at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(batching, "LOGITS_PER_FORWARD", logits_at_once)
    together = flat(measure(LM, TOKENS, requests()))
    for request in requests():
        alone = flat(measure(LM, TOKENS, [request]))
        for name, values in alone.items():
            assert (values == together[name]).all(), name


@pytest.mark.parametrize("forward_tokens", [1, 30, 70])
def test_numbers_do_not_depend_on_the_batch_size(forward_tokens: int) -> None:
    together = flat(measure(LM, TOKENS, requests()))
    other = flat(measure(LM, TOKENS, requests(), forward_tokens=forward_tokens))
    assert together.keys() == other.keys()
    for name, values in together.items():
        # Relative to the statistic's scale: a sum of cosines of both signs may come out near 0 for one document.
        np.testing.assert_allclose(other[name], values, rtol=0, atol=1e-6 * np.abs(values).max(), err_msg=name)


def test_results_are_in_document_order() -> None:
    reverse = list(range(len(TOKENS.ids)))[::-1]
    turned = EvalTokens(TOKENS.ids[reverse], TOKENS.lengths[reverse], TOKENS.digests[::-1], 0)
    forward, backward = flat(measure(LM, TOKENS, requests())), flat(measure(LM, turned, requests()))
    np.testing.assert_array_equal(forward["1.resid_post/predictions"], TOKENS.lengths.numpy() - 1)
    for name in ("a/ce_sae", "a/squared_error@2", "1.resid_post/ce_zero", "d/kl_sae"):
        np.testing.assert_allclose(backward[name][::-1], forward[name], rtol=1e-6, atol=1e-9)


def test_chunks_of_the_vocabulary_change_nothing(monkeypatch) -> None:
    whole = flat(measure(LM, TOKENS, requests()))
    monkeypatch.setattr(predictions, "_ELEMENTS_AT_ONCE", VOCABULARY * 3)
    for name, values in flat(measure(LM, TOKENS, requests())).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("difference", [1e-3, 0.5, 30.0])
@pytest.mark.parametrize("at_once", [1, 2**21])
def test_losses_are_those_of_float64(monkeypatch, difference: float, at_once: int) -> None:
    monkeypatch.setattr(predictions, "_ELEMENTS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 3, 6, 40, generator=generator)
    ids, real = torch.randint(0, 40, (3, 6), generator=generator), torch.arange(6) < torch.tensor([[6], [4], [2]])
    # At a difference of 30 some tokens are e times as likely as they were and more, which is another branch of the formula.
    found = predictions.Predictions.of(clean, ids, real).losses(clean + difference * noise)
    p, q = clean.double().log_softmax(-1), (clean + difference * noise).double().log_softmax(-1)
    told = real[:, 1:]
    losses = -q[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * told
    divergences = (p.exp() * (p - q)).sum(-1)[:, :-1] * told
    torch.testing.assert_close(found, (losses.sum(1), divergences.sum(1)), rtol=1e-5, atol=1e-9)


class Hungry(ToySAE):
    """Runs out of memory for more than `fits` tokens."""

    fits = 40

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().encode(x, budget)


def assert_same(found: PassResults, expected: PassResults) -> None:
    for one, other in zip(found.measurements, expected.measurements, strict=True):
        assert one.firing.tolist() == other.firing.tolist(), one.name  # counted once, although batches were tried twice
    got, want = flat(found), flat(expected)
    assert got.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-6 * np.abs(values).max(), err_msg=name)


def test_batches_are_halved_where_memory_runs_out() -> None:
    expected = measure(LM, TOKENS, requests())
    with little_memory(LM.model, 30):
        assert_same(measure(LM, TOKENS, requests()), expected)
    asked = [*requests(), MeasurementRequest("hungry", Hungry(), MIDDLE, splice=True)]
    found = measure(LM, TOKENS, asked)
    assert not found.failures
    assert_same(replace(found, measurements=[one for one in found.measurements if one.name != "hungry"]), expected)


def test_an_sae_that_never_fits_fails_alone() -> None:
    hungry = Hungry()
    hungry.fits = 3
    found = measure(LM, TOKENS, [*requests(), MeasurementRequest("hungry", hungry, MIDDLE)])
    assert list(found.failures) == ["hungry"]
    assert_same(found, measure(LM, TOKENS, requests()))


class TooWide(ToySAE):
    """Names latents that it does not have."""

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = super().encode(x, budget)
        return Codes(codes.values, codes.indices + self.width)

    def decode(self, codes: Codes) -> Tensor:
        return super().decode(Codes(codes.values, codes.indices - self.width))


def test_an_sae_that_names_latents_it_does_not_have_fails_alone() -> None:
    found = measure(LM, TOKENS, [*requests(), MeasurementRequest("wide", TooWide(), MIDDLE)])
    assert "codes name latent" in str(found.failures["wide"])
    assert_same(found, measure(LM, TOKENS, requests()))
