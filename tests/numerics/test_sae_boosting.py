"""SAEs made on top of other SAEs: boosted, extended, stitched, fine-tuned, and what they are as one dictionary."""

from __future__ import annotations

import pytest
import torch

from latentbench.core.errors import InvalidInput
from latentbench.sae.linear import ConcatenatedSAE, linear_weights
from latentbench.sae.options import (
    BatchTopKOptions,
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    FineTunedOptions,
    GatedOptions,
    JumpReLUOptions,
    KronOptions,
    StitchedOptions,
    TopKOptions,
    Variant,
)
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.sources.native import NativeSource
from tests.support.trained import WIDTH, D, K, rng, scaled, tokens, trained

LOADED = LoadedSae(load=NativeSource(path="somewhere"))

pytestmark = pytest.mark.usefixtures("one_thread")


def test_boosting_starts_as_the_base_and_stays_so_where_no_residual_latent_is_active() -> None:
    base = trained(TopKOptions(width=WIDTH, k=K))
    fresh = BoostedOptions(base=TopKOptions(width=WIDTH, k=K), width=20, k=2).build(D, rng(), (base,))
    x = tokens(30, 3)
    assert torch.equal(fresh(x), base(x))
    boosted = trained(BoostedOptions(base=TopKOptions(width=WIDTH, k=K), width=20, k=2), base)
    assert not torch.equal(boosted(x), base(x))
    boosted.residual.selection.threshold.fill_(1e9)
    assert torch.equal(boosted(x), base(x))


def test_boosting_improves_on_its_base_without_touching_it() -> None:
    base = trained(TopKOptions(width=WIDTH, k=2))
    before = {name: t.clone() for name, t in base.state_dict().items()}
    boosted = trained(BoostedOptions(base=TopKOptions(width=WIDTH, k=2), width=32, k=3), base, steps=150)
    x = tokens(64)
    assert (x - boosted(x)).pow(2).sum() < 0.8 * (x - base(x)).pow(2).sum()
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())
    assert not any(name.startswith("base") for name in boosted.state_dict())


BASES: list[Variant] = [
    TopKOptions(width=WIDTH, k=K),
    BatchTopKOptions(width=WIDTH, k=K),
    JumpReLUOptions(width=WIDTH, initial_threshold=0.3),
    GatedOptions(width=WIDTH),
]


@pytest.mark.parametrize("options", BASES, ids=lambda o: o.variant)
def test_boosted_sae_is_one_concatenated_dictionary(options: Variant) -> None:
    base = trained(options, double=True)
    first, second = (
        BoostedOptions(base=options, width=w, k=2, selection=s) for w, s in ((20, "batch_topk"), (8, "topk"))
    )
    boosts = tuple(trained(o, base, double=True) for o in (first, second))
    both = EnsembleOptions(boosts=(first, second)).build(D, rng(), boosts)
    x = tokens(30, 5, torch.float64)
    for sae in (*boosts, both):
        single = sae.as_single()
        assert isinstance(single, ConcatenatedSAE)
        assert single.width == sae.width
        torch.testing.assert_close(single(x), sae(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(single.encode(x).dense(sae.width), sae.encode(x).dense(sae.width))
    torch.testing.assert_close(both(x) - base(x), sum(b(x) - base(x) for b in boosts))


def test_concatenated_dictionary_is_a_jumprelu_sae_when_all_have_thresholds() -> None:
    base = trained(BatchTopKOptions(width=WIDTH, k=K), double=True)
    boosted = trained(BoostedOptions(base=BatchTopKOptions(width=WIDTH, k=K), width=20, k=2), base, double=True)
    single, x = boosted.as_single(), tokens(30, 5, torch.float64)
    thresholds = single.thresholds()
    assert thresholds is not None
    pre = x @ single.W_enc.t() + single.b_enc
    torch.testing.assert_close((pre * (pre > thresholds)) @ single.W_dec + single.b_dec, boosted(x))
    assert trained(TopKOptions(width=WIDTH, k=K)).linear_weights().groups[0].width == WIDTH


def test_an_ensemble_of_different_bases_is_refused() -> None:
    options = BoostedOptions(base=TopKOptions(width=WIDTH, k=K), width=20, k=2)
    boosts = tuple(trained(options, trained(TopKOptions(width=WIDTH, k=k))) for k in (2, 3))
    with pytest.raises(InvalidInput, match="same base"):
        EnsembleOptions(boosts=(options, options)).build(D, rng(), boosts)


def test_no_linear_equivalent_of_kron() -> None:
    with pytest.raises(InvalidInput, match="no equivalent linear encoder"):
        linear_weights(KronOptions(width=WIDTH, k=K, m=2, n=4).build(D, rng()))


@pytest.mark.parametrize("init", ["random", "most_active"])
def test_extending_leaves_every_old_latent_as_it_is(init: str) -> None:
    base = trained(TopKOptions(width=WIDTH, k=K))
    options = ExtendedOptions(base=TopKOptions(width=WIDTH, k=K), extra_width=12, extra_k=2, init=init)
    sae = trained(options, base)
    old, new = linear_weights(base).groups[0], linear_weights(sae).groups[0]
    assert new.width == WIDTH + 12
    torch.testing.assert_close(new.W_enc[:WIDTH], old.W_enc, rtol=0, atol=0)
    torch.testing.assert_close(new.W_dec[:WIDTH], old.W_dec, rtol=0, atol=0)
    torch.testing.assert_close(new.b_enc[:WIDTH], old.b_enc)
    torch.testing.assert_close(sae.b_dec, base.b_dec)
    assert sae.encode(tokens(5)).values.shape[1] == K + 2


def test_copies_read_as_the_most_active_latents_do_and_write_nothing_at_first() -> None:
    """At step 0 the output is that of the base's latents that are among the k + extra_k strongest, copies included."""
    base = trained(TopKOptions(width=WIDTH, k=K))
    options = ExtendedOptions(base=TopKOptions(width=WIDTH, k=K), extra_width=6, extra_k=2, init="most_active")
    sae, x = options.build(D, rng(), (base,)), tokens(64)
    sae.begin(x.mean(0), 1.0)
    sae.encoder.bias.data[WIDTH:] = -1e9  # only old latents fire while counting
    counts = sae.encode(x).firing_counts(WIDTH + 6)[:WIDTH]
    sae.loss(x, torch.zeros(WIDTH + 6, dtype=torch.bool), 0, 10)
    chosen = counts.argsort(descending=True, stable=True)[:6]
    assert torch.equal(sae.encoder.weight[WIDTH:], sae.encoder.weight[chosen])
    assert torch.equal(sae.encoder.bias[WIDTH:], sae.encoder.bias[chosen])
    pre = x @ sae.encoder.weight.t() + sae.encoder.bias
    strongest = torch.where(pre >= pre.sort(dim=1, descending=True).values[:, K + 1 : K + 2], pre.relu(), 0)
    assert (strongest[:, WIDTH:] > 0).any(), "no copy is active: nothing is tested"
    old = linear_weights(base).groups[0]
    torch.testing.assert_close(sae(x), strongest[:, :WIDTH] @ old.W_dec + base.b_dec)


def test_copies_learn_what_the_old_latents_leave() -> None:
    base = trained(TopKOptions(width=WIDTH, k=K))
    options = ExtendedOptions(base=TopKOptions(width=WIDTH, k=K), extra_width=12, extra_k=2, init="most_active")
    x = tokens(64)
    errors = [(x - trained(options, base, steps=steps)(x)).pow(2).sum() for steps in (1, 40, 160)]
    assert errors[0] > errors[1] > errors[2]
    assert (trained(options, base).W_dec[WIDTH:].norm(dim=1) > 0).sum() > 6


def test_stitching_keeps_only_the_most_changed_latents() -> None:
    base = trained(TopKOptions(width=WIDTH, k=K))
    tuned = trained(FineTunedOptions(base=TopKOptions(width=WIDTH, k=K)), base)
    sae = trained(StitchedOptions(base=TopKOptions(width=WIDTH, k=K), grafted=10), base)
    old, new, full = (linear_weights(s).groups[0] for s in (base, sae, tuned))
    same = (new.W_dec == old.W_dec).all(1) & (new.W_enc == old.W_enc).all(1)
    assert same.sum() == WIDTH - 10
    assert torch.equal(new.W_dec[~same], full.W_dec[~same])
    change = torch.cat([full.W_enc - old.W_enc, full.W_dec - old.W_dec], 1).norm(dim=1)
    change /= torch.cat([old.W_enc, old.W_dec], 1).norm(dim=1)
    assert change[~same].min() >= change[same].max()


def test_more_latents_than_a_loaded_base_has_are_refused_when_it_is_there() -> None:
    base = trained(TopKOptions(width=WIDTH, k=K))
    for options, reason in (
        (FineTunedOptions(base=LOADED, k=WIDTH + 1), "49 active latents cannot exceed the 48"),
        (ExtendedOptions(base=LOADED, extra_width=8, extra_k=53), "57 active latents cannot exceed the 56"),
        (ExtendedOptions(base=LOADED, extra_width=WIDTH + 1, init="most_active"), "cannot be copies"),
        (StitchedOptions(base=LOADED, grafted=WIDTH + 1), "cannot graft"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            options.build(D, rng(), (base,))
    with pytest.raises(InvalidInput, match="another SAE stands among its boosts"):
        EnsembleOptions(boosts=(LOADED,)).build(D, rng(), (base,))


def test_fine_tuning_starts_at_the_base() -> None:
    """The new SAE is built in float32, the base's decoder bias folded into the encoder's: equal up to its rounding."""
    x, base = tokens(64), trained(TopKOptions(width=WIDTH, k=K))
    sae = FineTunedOptions(base=TopKOptions(width=WIDTH, k=K)).build(D, rng(), (base,))
    torch.testing.assert_close(sae(x), base(x), rtol=1e-5, atol=1e-5)
    sae.begin(x.mean(0), 0.3)
    torch.testing.assert_close(scaled(sae, 0.3, x), base(x), rtol=1e-5, atol=1e-5)


def test_fine_tuning_a_base_with_thresholds_needs_k() -> None:
    base, x = trained(JumpReLUOptions(width=WIDTH), double=True), tokens(64, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="say with k"):  # a loaded base is only known when it is there
        FineTunedOptions(base=LOADED).build(D, rng(), (base,))
    sae = FineTunedOptions(base=JumpReLUOptions(width=WIDTH), k=5).build(D, rng(), (base,)).double()
    torch.testing.assert_close(sae.encoder.top(x, 9).values, base.pre(x).relu().topk(9).values)
