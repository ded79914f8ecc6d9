"""Statistics of a pass against plain, slow definitions; independence of company and batching; isolation; storage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, LlamaConfig

from adapters.protocols import LanguageModel
from harness.activations.blocks import decoder_blocks, submodule
from harness.activations.site import Site
from harness.activations.tokens import EvalTokens
from harness.errors import InvalidInput
from harness.measure import domain, losses
from harness.measure.documents import Request, Results, measure
from harness.measure.statistics import Baseline, Measurement
from harness.metrics.base import SHARED
from harness.sae.base import SparseAutoencoder
from harness.sae.codes import Codes

BOS, CONTEXT, D, VOCABULARY = 0, 14, 16, 60
MIDDLE, LAST, MLP, ATTENTION = (
    Site(index=1),
    Site(index=2),
    Site(index=1, point="mlp_out"),
    Site(index=0, point="attn_out"),
)
TOKENIZER = SimpleNamespace(bos_token_id=BOS, eos_token_id=1, pad_token_id=None, sep_token_id=None, cls_token_id=None)


def language_model(config=None) -> LanguageModel:
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel(model, TOKENIZER, torch.device("cpu"))


def documents(count: int = 9, seed: int = 0) -> EvalTokens:
    """Documents of different lengths behind BOS, some ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, CONTEXT + 1, (count,), generator=generator)
    lengths[1], lengths[2] = 2, CONTEXT
    ids = torch.randint(2, VOCABULARY, (count, CONTEXT), generator=generator)
    ids[:, 0] = BOS
    ids[2, -1] = 1
    ids[torch.arange(CONTEXT) >= lengths[:, None]] = 1
    return EvalTokens(ids.int(), lengths.int(), tuple(f"{n:016x}" for n in range(count)), 0)


class ToySAE(SparseAutoencoder):
    """The k largest of 24 random latents."""

    def __init__(self, seed: int = 0, k: int = 4) -> None:
        super().__init__()
        self.d_in, self.width, self.k = D, 24, k
        weights = torch.randn(2, D, 24, generator=torch.Generator().manual_seed(seed)) / 4
        self.encoder, self.decoder = weights[0], weights[1].T

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        values, indices = (x @ self.encoder).relu().topk(budget or self.k, dim=-1)
        return Codes(values, indices)

    def decode(self, codes: Codes) -> Tensor:
        return codes.dense(self.width) @ self.decoder


class Identity(ToySAE):
    """Gives back what it gets."""

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return Codes(x, torch.arange(D).expand(len(x), D))

    def decode(self, codes: Codes) -> Tensor:
        return codes.values


class BrokenSAE(ToySAE):
    """Fails in its second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def decode(self, codes: Codes) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ArithmeticError("second batch")
        return super().decode(codes)


LM, TOKENS = language_model(), documents()


def flat(results: Results) -> dict[str, np.ndarray]:
    """All statistics of a pass under one roof."""
    found = {f"{site}/{name}": v for site, b in results.baselines.items() for name, v in b.statistics.items()}
    found |= {f"{site}/mean": b.mean for site, b in results.baselines.items()}
    for m in results.measurements:
        found |= {f"{m.name}/{name}": v for name, v in m.statistics.items()}
        found |= {f"{m.name}/{m.budget}/firing": m.firing}
    return found


def plain_statistics(lm: LanguageModel, tokens: EvalTokens, site: Site, sae: ToySAE, budget: int | None):
    """The definitions in harness/measure/statistics.py, one document at a time, with ordinary forward hooks."""
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
    keep = [~torch.isin(ids, torch.tensor([0, 1])) for ids in rows]
    clean = [run(ids) for ids in rows]
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
    results = measure(lm, TOKENS, [Request("sae", sae, site, (budget,), splice=True)], forward_tokens=40)
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


def test_an_identity_loses_nothing() -> None:
    results = measure(LM, TOKENS, [Request("identity", Identity(), site, splice=True) for site in [MLP]])
    baseline, measured = results.baselines[MLP].statistics, results.measurements[0].statistics
    assert (measured["ce_sae"] == baseline["ce_clean"]).all()
    assert (measured["kl_sae"] == 0).all()
    assert (measured["squared_error"] == 0).all()
    assert measured["cosine"].sum() == pytest.approx(baseline["tokens"].sum(), rel=1e-6)


def requests() -> list[Request]:
    return [
        Request("a", ToySAE(1), MIDDLE, (None, 2), splice=True),
        Request("b", ToySAE(2), MIDDLE, (None, 1)),
        Request("c", ToySAE(3), LAST, splice=True),
        Request("d", ToySAE(4), MLP, splice=True),
    ]


@pytest.mark.parametrize("logits_at_once", [2**28, 40 * VOCABULARY], ids=["small", "large-vocabulary"])
def test_numbers_do_not_depend_on_what_else_is_measured(logits_at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(domain, "_LOGITS_PER_FORWARD", logits_at_once)
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
    monkeypatch.setattr(losses, "_ELEMENTS_AT_ONCE", VOCABULARY * 3)
    for name, values in flat(measure(LM, TOKENS, requests())).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-9, atol=1e-9)


def test_an_sae_that_raises_is_dropped_and_the_others_are_untouched() -> None:
    class WrongShape(ToySAE):
        def decode(self, codes: Codes) -> Tensor:
            return super().decode(codes)[:, :1]  # would broadcast silently

    broken = [Request("broken", BrokenSAE(), MIDDLE, splice=True), Request("narrow", WrongShape(), LAST)]
    results = measure(LM, TOKENS, [broken[0], *requests(), broken[1]], forward_tokens=40)
    assert {name: type(error) for name, error in results.failures.items()} == {
        "broken": ArithmeticError, "narrow": ValueError
    }  # fmt: skip
    assert "in decode" in results.failures["broken"].__notes__[0]
    assert {m.name for m in results.measurements} == {"a", "b", "c", "d"}
    healthy, expected = flat(results), flat(measure(LM, TOKENS, requests(), forward_tokens=40))
    assert all((healthy[name] == values).all() for name, values in expected.items())
    with pytest.raises(ValueError, match="same name"):
        measure(LM, TOKENS, [broken[0], broken[0]])


def forwards(action) -> int:
    calls = []
    handle = LM.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    action()
    handle.remove()
    return len(calls)


def test_only_what_is_missing_is_computed() -> None:
    measure(LM, TOKENS, sites=[MIDDLE])  # the probe of a block's return value is behind us
    first = measure(LM, TOKENS, requests())
    known = first.baselines
    again = measure(LM, TOKENS, requests(), baselines=known)
    for name, values in flat(first).items():
        assert (flat(again)[name] == values).all()
    assert forwards(lambda: measure(LM, TOKENS, baselines=known, sites=[MIDDLE], splice_sites=[LAST])) == 0
    # One clean forward and one resumed: neither means nor ablations are run again.
    assert forwards(lambda: measure(LM, TOKENS, requests()[2:3], baselines=known)) == 2
    # A pass for the mean, a clean forward, zero, mean and the SAE.
    assert forwards(lambda: measure(LM, TOKENS, requests()[2:3])) == 5
    # Without splicing two short passes.
    assert forwards(lambda: measure(LM, TOKENS, requests()[1:2])) == 2


def test_a_large_vocabulary_means_smaller_batches(monkeypatch) -> None:
    known = measure(LM, TOKENS, requests()).baselines
    monkeypatch.setattr(domain, "_LOGITS_PER_FORWARD", 40 * VOCABULARY)
    padded = []
    hook = lambda module, args, kwargs: padded.append(kwargs["input_ids"].numel())  # noqa: E731
    handle = LM.model.register_forward_pre_hook(hook, with_kwargs=True)
    measure(LM, TOKENS, requests()[2:3], baselines=known)
    handle.remove()
    assert len(padded) > 2
    assert max(padded) <= 40


def test_a_baseline_is_completed_when_a_later_request_splices() -> None:
    cheap = measure(LM, TOKENS, sites=[MIDDLE]).baselines
    assert not cheap[MIDDLE].spliced
    assert "ce_clean" not in cheap[MIDDLE].statistics
    full = measure(LM, TOKENS, splice_sites=[MIDDLE], baselines=cheap).baselines
    assert full[MIDDLE].spliced
    direct = measure(LM, TOKENS, splice_sites=[MIDDLE]).baselines[MIDDLE]
    assert all((direct.statistics[name] == full[MIDDLE].statistics[name]).all() for name in SHARED)


def test_baselines_and_measurements_survive_storage(tmp_path) -> None:
    results = measure(LM, TOKENS, requests())
    for made in (*results.baselines.values(), *results.measurements):
        tensors, meta = made.to_tensors()
        save_file(tensors, tmp_path / "x.safetensors")
        read = load_file(tmp_path / "x.safetensors")
        if isinstance(made, Baseline):
            back = Baseline.from_tensors(read, meta)
            assert back.site == made.site
            assert (back.mean == made.mean).all()
        else:
            back = Measurement.from_tensors(made.name, read, meta)
            assert (back.budget, back.firing.tolist()) == (made.budget, made.firing.tolist())
        assert back.spliced == made.spliced
        assert back.statistics.keys() == made.statistics.keys()
        assert all((back.statistics[name] == values).all() for name, values in made.statistics.items())


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    measure(LM, TOKENS, requests(), forward_tokens=30, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (18, 18)  # the documents for the means, and once more
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_low_precision_models_are_measured_in_float32() -> None:
    lm = LanguageModel(language_model().model.to(torch.bfloat16), TOKENIZER, torch.device("cpu"))
    results = measure(lm, TOKENS, [Request("identity", Identity(), MIDDLE, splice=True)])
    assert (results.measurements[0].statistics["kl_sae"] == 0).all()  # the round trip through float32 is exact
    with pytest.raises(InvalidInput, match="layer 3 does not exist"):
        measure(lm, TOKENS, sites=[Site(index=3)])
