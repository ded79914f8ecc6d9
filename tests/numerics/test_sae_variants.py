"""What each variant promises beyond its gradients: selection, thresholds, budgets, boosting, folding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.activations.site import Site
from harness.errors import InvalidInput
from harness.sae.base import SparseAutoencoder, TrainableSAE
from harness.sae.codes import Codes
from harness.sae.encoders import LinearEncoder
from harness.sae.kron import KronEncoder, combine
from harness.sae.linear import ConcatenatedSAE, linear_weights
from harness.sae.moments import FittedTrainee
from harness.sae.options import (
    BatchTopKOptions,
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    FineTunedOptions,
    GatedOptions,
    HierarchicalTopKOptions,
    IdentityOptions,
    JumpReLUOptions,
    KronOptions,
    MatryoshkaOptions,
    MeanOptions,
    PCAOptions,
    RandomDecoderOptions,
    StandardOptions,
    StitchedOptions,
    TopKOptions,
    UntrainedOptions,
    Variant,
)
from harness.sae.prefixes import BudgetLoss
from harness.sae.rules import top_of_batch
from harness.sae.selection import BatchSelection
from harness.sae.sparse import top_linear
from harness.sae.trainee import NativeTrainee
from harness.sae.training import TrainingOptions

D, WIDTH, K = 16, 48, 4
SITE = Site(index=0)
SEEDS = st.integers(0, 2**31 - 1)


pytestmark = pytest.mark.usefixtures("one_thread")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(n: int = 40, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hidden states with structure: sums of a few directions, off centre."""
    directions = torch.randn(24, D, generator=rng(99), dtype=dtype)
    amounts = torch.rand(n, 24, generator=rng(seed), dtype=dtype) * (torch.rand(n, 24, generator=rng(seed + 1)) < 0.15)
    return amounts @ directions * 3 + 0.7


def trained(options: Variant, *bases: SparseAutoencoder, steps: int = 40, double: bool = False) -> SparseAutoencoder:
    x = tokens(64, dtype=torch.float64 if double else torch.float32)
    sae = options.build(D, rng(), bases)
    assert isinstance(sae, TrainableSAE)
    sae = sae.double() if double else sae
    recipe = TrainingOptions(batch=64, lr=3e-3, dead_after=640)
    norm = float(x.norm(dim=1).mean())
    trainee = NativeTrainee(sae, SITE, recipe, steps=steps, first_norm=norm, mean=x.mean(0))
    for _ in range(steps):
        trainee.step(x)
    return trainee.finish()


def scaled(sae: TrainableSAE, scale: float, x: Tensor) -> Tensor:
    """x̂ of an SAE that reads and writes `scale · x`."""
    return sae(x * scale) / scale


@given(SEEDS, st.integers(1, 30), st.sampled_from(["distinct", "ties"]))
@settings(max_examples=30, deadline=None)
def test_top_latents_are_the_k_largest_in_order(seed: int, k: int, kind: str) -> None:
    x = torch.randn(7, 5, generator=rng(seed))
    if kind == "ties":
        x = x.round()
    weight = torch.randn(100, 5, generator=rng(seed + 1)).round()
    values, indices = top_linear(x, weight, torch.zeros(100), k)
    full = x @ weight.t()
    wanted = full.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(values, wanted.values[:, :k], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(full.gather(1, indices), values, rtol=1e-5, atol=1e-5)
    assert all(len(set(row.tolist())) == k for row in indices)


@given(SEEDS, st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_batch_selection_equals_sorting_everything(seed: int, total: int) -> None:
    """Also when one token holds nearly all of the strongest latents, and when too few are positive."""
    pre = torch.randn(6, 30, generator=rng(seed))
    pre[0] += 3 * (seed % 3)
    pre[3] -= 5

    def top(m: int) -> Codes:
        return Codes(*pre.topk(m, dim=1))

    codes = top_of_batch(top, 6, 30, total)
    wanted = pre.flatten().sort(descending=True).values[:total]
    dense = codes.dense(30)
    assert torch.equal(dense[dense > 0].sort(descending=True).values, wanted[wanted > 0])
    assert torch.equal(dense[dense > 0], pre[dense > 0])


def test_batch_top_k_counts_over_the_batch_and_follows_its_smallest_activation() -> None:
    encoder, selection = LinearEncoder(D, WIDTH, rng()), BatchSelection(K, momentum=0.25)
    first, second = tokens(40, 1), tokens(40, 7) * 2
    codes = selection.train_on(encoder, first, None)
    assert codes.l0.sum() == K * 40
    assert codes.l0.unique().numel() > 1, "the number of active latents must differ between tokens"
    low = codes.values[codes.values > 0].min()
    assert selection.threshold == low
    lower = selection.train_on(encoder, second, None).values
    torch.testing.assert_close(selection.threshold, low + 0.25 * (lower[lower > 0].min() - low))


def test_batch_top_k_judges_each_token_alone_afterwards() -> None:
    sae = trained(BatchTopKOptions(width=WIDTH, k=K))
    x = tokens(30, 3)
    threshold = sae.selection.threshold
    pre = (x - sae.b_dec) @ sae.encoder.weight.t() + sae.encoder.bias
    torch.testing.assert_close(sae.encode(x).dense(WIDTH), pre * (pre > threshold))
    assert threshold > 0
    alone = torch.cat([sae(x[i : i + 1]) for i in range(30)])
    torch.testing.assert_close(sae(x), alone)
    assert sae.encode(x, 2).l0.max() <= 2


@pytest.mark.parametrize("options", [TopKOptions(width=WIDTH, k=6), HierarchicalTopKOptions(width=WIDTH, k=6)])
def test_a_budget_keeps_the_strongest(options: Variant) -> None:
    sae, x = trained(options), tokens(20, 3)
    full = sae.encode(x)
    assert (full.values[:, :-1] >= full.values[:, 1:]).all()
    for budget in (1, 3, 6):
        codes = sae.encode(x, budget)
        assert codes.values.shape[1] == budget
        assert torch.equal(codes.indices, full.indices[:, :budget])
    assert torch.equal(sae.encode(x, 99).values, full.values)


def test_hierarchical_gradients_are_the_published_closed_form() -> None:
    """With g_j = 2/(N K) (x̂_j − x) and S_r = Σ_{j≥r} g_j: dW[i_r] += v_r S_r, dv_r = <W[i_r], S_r>, db = S_1."""
    n, k = 9, 5
    x = torch.randn(n, D, generator=rng(1), dtype=torch.float64)
    weight = torch.randn(WIDTH, D, generator=rng(2), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(D, generator=rng(3), dtype=torch.float64, requires_grad=True)
    values = torch.rand(n, k, generator=rng(4), dtype=torch.float64).sort(descending=True).values.requires_grad_()
    indices = torch.stack([torch.randperm(WIDTH, generator=rng(i))[:k] for i in range(n)])
    fit = BudgetLoss(tuple(range(1, k + 1)))(Codes(values, indices), weight, bias, x)
    dvalues, dweight, dbias = torch.autograd.grad(fit.loss, (values, weight, bias))

    with torch.no_grad():
        atoms = weight[indices]
        prefixes = bias + (values[..., None] * atoms).cumsum(1)
        g = 2 / (n * k) * (prefixes - x[:, None])
        suffix = g.flip(1).cumsum(1).flip(1)
        wanted = torch.zeros_like(weight).index_add_(0, indices.flatten(), (values[..., None] * suffix).flatten(0, 1))
    torch.testing.assert_close(dweight, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dvalues, (atoms * suffix).sum(2).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dbias, suffix[:, 0].sum(0).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fit.error, x - prefixes[:, -1], rtol=1e-10, atol=1e-12)


def test_hierarchical_memory_does_not_grow_with_the_number_of_budgets() -> None:
    """The graph of the loss keeps no tensor with a budget and a dimension axis."""
    sae, x = HierarchicalTopKOptions(width=WIDTH, k=12).build(D, rng()), tokens(8)
    assert isinstance(sae, TrainableSAE)
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 1)
    assert sizes
    assert max(sizes) <= max(WIDTH * D, 8 * 12, 8 * D)


@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_kron_latents_are_the_root_of_the_kronecker_product(seed: int, m: int, n: int) -> None:
    """vec(z) = √(p ⊗ q) within every head, and an inactive pair is exactly zero with gradient exactly zero."""
    encoder = KronEncoder(D, 3, m, n, "mand", 4, rng(seed)).double()
    x = torch.randn(5, D, dtype=torch.float64, generator=rng(seed + 1), requires_grad=True)
    latents = encoder.some(x, torch.arange(encoder.width))
    pre = (x @ encoder.weight.t()).relu().view(5, 3, m + n)
    for t in range(5):
        for head in range(3):
            p, q = pre[t, head, :m], pre[t, head, m:]
            own = latents[t, head * m * n : (head + 1) * m * n]
            torch.testing.assert_close(own, torch.kron(p, q).sqrt(), rtol=1e-9, atol=1e-12)
    off = latents == 0
    gradient = torch.autograd.grad((latents * off).sum(), x)[0]
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_kron_pairs_need_both_parents() -> None:
    u, v = torch.tensor([2.0, -1.0, 2.0, -1.0]), torch.tensor([8.0, 8.0, -1.0, -4.0])
    assert combine(u, v, "mand").tolist() == [4, 0, 0, 0]
    assert combine(u, v, "relu_product").tolist() == [16, 0, 0, 0]
    assert combine(u, v, "product").tolist() == [16, 0, 0, 4]


@given(SEEDS, st.sampled_from([(1, 1), (2, 3), (4, 8), (5, 2)]), st.sampled_from(["mand", "product"]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pruned_kron_selection_equals_the_full_one(seed: int, shape: tuple[int, int], kernel: str, ties: bool) -> None:
    m, n = shape
    encoder = KronEncoder(D, 12, m, n, kernel, 4, rng(seed))  # type: ignore[arg-type]
    pre = torch.randn(6, 12 * (m + n), generator=rng(seed + 1))
    pre = pre.round() if ties else pre
    pre[5] = -pre[5].abs()
    for k in (1, 4, min(20, encoder.width)):
        pruned, full = encoder.strongest(pre, k), encoder.strongest(pre, k, pruned=False)
        assert torch.equal(pruned.values, full.values)
        assert torch.equal(pruned.indices, full.indices)
        torch.testing.assert_close(pruned.values, encoder._strongest_torch(pre, k).values, rtol=0, atol=0)
        u, v = (pre.gather(1, rows) for rows in encoder.parents(pruned.indices))
        active = pruned.values > 0
        assert torch.equal((u * v)[active], pruned.values[active])


def test_kron_with_too_few_active_pairs_reports_the_true_l0() -> None:
    sae, x = KronOptions(width=WIDTH, k=20, m=4, n=4).build(D, rng()), tokens(10)
    codes = sae.encode(x)
    dense = sae.encoder.some(x, torch.arange(WIDTH))
    assert torch.equal(codes.l0, (dense > 0).sum(1).clamp_max(20))
    assert codes.l0.min() < 20


def test_kron_decoder_starts_as_normalised_sums_of_its_parents() -> None:
    sae = KronOptions(width=WIDTH, k=4, m=2, n=3).build(D, rng())
    base, extension = sae.encoder.parents(torch.arange(WIDTH))
    rows = sae.encoder.weight[base] + sae.encoder.weight[extension]
    torch.testing.assert_close(sae.W_dec, rows / rows.norm(dim=1, keepdim=True))


def test_kron_threshold_selection_finds_everything_above_it() -> None:
    encoder = KronEncoder(D, 8, 2, 3, "mand", 1, rng(4))
    x = tokens(25) * 4
    dense = encoder.some(x, torch.arange(WIDTH)).detach()
    threshold = dense[dense > 0].median()
    torch.testing.assert_close(encoder.above(x, threshold).dense(WIDTH), dense * (dense > threshold))


FOLDED: list[Variant] = [
    TopKOptions(width=WIDTH, k=K),
    BatchTopKOptions(width=WIDTH, k=K),
    HierarchicalTopKOptions(width=WIDTH, k=K),
    MatryoshkaOptions(width=WIDTH, k=K, groups=(16, 32)),
    KronOptions(width=WIDTH, k=K, m=2, n=4),
    KronOptions(width=WIDTH, k=K, m=2, n=4, kernel="relu_product", selection="batch_topk"),
    KronOptions(width=WIDTH, k=K, m=2, n=4, kernel="product"),
    StandardOptions(width=WIDTH),
    GatedOptions(width=WIDTH),
    JumpReLUOptions(width=WIDTH),
    RandomDecoderOptions(width=WIDTH, k=K),
]


@pytest.mark.parametrize("options", FOLDED, ids=lambda o: f"{o.variant} {getattr(o, 'kernel', '')}")
def test_folding_the_input_scale_changes_nothing(options: Variant) -> None:
    sae = options.build(D, rng())
    assert isinstance(sae, TrainableSAE)
    sae, x, scale = sae.double(), tokens(30, dtype=torch.float64), 0.37
    sae.begin(x.mean(0), scale)
    for parameter in sae.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng(8))
    sae.loss(x * scale, torch.zeros(sae.width, dtype=torch.bool), 0, 1)  # sets a threshold where there is one
    before = scaled(sae, scale, x).detach()
    sae.fold_input_scale(scale)
    torch.testing.assert_close(sae(x), before, rtol=1e-9, atol=1e-9)


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


def test_most_active_latents_are_copied_at_the_first_step() -> None:
    base = trained(TopKOptions(width=WIDTH, k=K))
    options = ExtendedOptions(base=TopKOptions(width=WIDTH, k=K), extra_width=6, extra_k=2, init="most_active")
    sae, x = options.build(D, rng(), (base,)), tokens(64)
    sae.begin(x.mean(0), 1.0)
    sae.encoder.bias.data[WIDTH:] = -1e9  # only old latents fire while counting
    counts = sae.encode(x).firing_counts(WIDTH + 6)[:WIDTH]
    sae.loss(x, torch.zeros(WIDTH + 6, dtype=torch.bool), 0, 10)
    chosen = counts.argsort(descending=True, stable=True)[:6]
    assert torch.equal(sae.W_dec[WIDTH:], sae.W_dec[chosen])
    assert torch.equal(sae.encoder.bias[WIDTH:], sae.encoder.bias[chosen])


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


def test_fine_tuning_starts_at_the_base() -> None:
    """The new SAE is built in float32, the base's decoder bias folded into the encoder's: equal up to its rounding."""
    x, base = tokens(64), trained(TopKOptions(width=WIDTH, k=K))
    sae = FineTunedOptions(base=TopKOptions(width=WIDTH, k=K)).build(D, rng(), (base,))
    torch.testing.assert_close(sae(x), base(x), rtol=1e-5, atol=1e-5)
    sae.begin(x.mean(0), 0.3)
    torch.testing.assert_close(scaled(sae, 0.3, x), base(x), rtol=1e-5, atol=1e-5)


def test_fine_tuning_a_base_with_thresholds_needs_k() -> None:
    base, x = trained(JumpReLUOptions(width=WIDTH), double=True), tokens(64, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="say with k"):
        FineTunedOptions(base=JumpReLUOptions(width=WIDTH)).build(D, rng(), (base,))
    sae = FineTunedOptions(base=JumpReLUOptions(width=WIDTH), k=5).build(D, rng(), (base,)).double()
    torch.testing.assert_close(sae.encoder.top(x, 9).values, base.pre(x).relu().topk(9).values)


def test_identity_returns_its_input() -> None:
    sae, x = IdentityOptions().build(D, rng()), tokens(9)
    assert torch.equal(sae(x), x)


def fitted(options: Variant, x: Tensor) -> SparseAutoencoder:
    trainee = FittedTrainee(options.build(D, rng()), SITE)  # type: ignore[arg-type]
    for part in x.split(7):
        trainee.step(part)
    return trainee.finish()


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
