"""What selections promise beyond their gradients: the k largest, thresholds, budgets, folding."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.sae.autoencoder import Codes, TrainableSAE
from latentbench.sae.encoders import BatchSelection, LinearEncoder, top_of_batch
from latentbench.sae.linear import ConcatenatedSAE, LinearWeights, TopKRule
from latentbench.sae.options import (
    AbsTopKOptions,
    BatchTopKOptions,
    GatedOptions,
    HierarchicalTopKOptions,
    JumpReLUOptions,
    KronJumpReLUOptions,
    KronOptions,
    MatchingPursuitOptions,
    MatryoshkaOptions,
    MultiTopKOptions,
    PAnnealOptions,
    RandomDecoderOptions,
    StandardOptions,
    TopKOptions,
    Variant,
)
from latentbench.sae.sparse_kernels.autograd import top_linear, top_magnitudes
from latentbench.sae.sparse_kernels.dispatch import NUMBA
from latentbench.sae.variants.penalised import PAnneal, powers
from latentbench.sae.variants.pursuit import MatchingPursuit, merged
from latentbench.sae.variants.topk import BudgetLoss
from tests.support.trained import SEEDS, WIDTH, D, K, rng, scaled, tokens, trained

pytestmark = pytest.mark.usefixtures("one_thread")


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


@given(SEEDS, st.integers(1, 30), st.sampled_from(["distinct", "ties"]))
@settings(max_examples=30, deadline=None)
def test_top_magnitudes_keep_their_signs_and_come_in_order(seed: int, k: int, kind: str) -> None:
    x = torch.randn(7, 5, generator=rng(seed), dtype=torch.float64)
    x = x.round() if kind == "ties" else x
    weight, bias = torch.randn(100, 5, generator=rng(seed + 1)).round().double(), torch.arange(100).double() % 3
    values, indices = top_magnitudes(x, weight, bias, k)
    full = x @ weight.t() + bias
    wanted = full.abs().sort(dim=1, descending=True, stable=True).values[:, :k]
    torch.testing.assert_close(values.abs(), wanted)
    torch.testing.assert_close(full.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_signed_codes_are_cut_to_the_largest_magnitudes() -> None:
    codes = Codes(torch.tensor([[0.0, 2.0, -3.0, 1.0]]), torch.tensor([[0, 4, 7, 9]]))
    assert codes.truncated(2).dense(10).nonzero()[:, 1].tolist() == [4, 7]
    sae, x = trained(AbsTopKOptions(width=WIDTH, k=K)), tokens(20, 3)
    assert (sae.encode(x).values < 0).any()
    for budget in (1, K - 1, 2 * K):
        wanted = sae.encode(x, WIDTH).truncated(budget).dense(WIDTH)
        torch.testing.assert_close(sae.encode(x, budget).dense(WIDTH), wanted)
        assert sae.encode(x, budget).l0.max() == budget


@given(SEEDS, st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_merged_codes_hold_every_latent_once_and_decode_the_same(seed: int, active: int) -> None:
    values = torch.randn(9, active, generator=rng(seed), dtype=torch.float64).relu()
    codes = Codes(values, torch.randint(0, 12, (9, active), generator=rng(seed + 1)))
    made = merged(codes)
    torch.testing.assert_close(made.dense(12), codes.dense(12))
    for numbers, latents in zip(made.values, made.indices, strict=True):
        assert len(set(latents[numbers != 0].tolist())) == int((numbers != 0).sum())


def test_matching_pursuit_leaves_less_with_every_step_and_a_budget_is_its_first_steps() -> None:
    sae, x = trained(MatchingPursuitOptions(width=WIDTH, k=K), double=True), tokens(20, 3, torch.float64)
    assert isinstance(sae, MatchingPursuit)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(WIDTH, dtype=torch.float64))
    left, before = (x - sae.b_dec).clone(), (x - sae.b_dec).norm(dim=1)
    for budget in range(1, 2 * K):
        amounts, found = (left @ sae.W_dec.t()).max(1)
        left -= amounts.relu()[:, None] * sae.W_dec[found]
        torch.testing.assert_close(x - sae.decode(sae.encode(x, budget)), left, rtol=1e-9, atol=1e-9)
        assert (left.norm(dim=1) <= before).all()
        before = left.norm(dim=1)
    with pytest.raises(InvalidInput, match="cannot exceed the dictionary width"):
        sae.encode(x, WIDTH + 1)


def test_p_annealing_ends_at_its_last_power_and_zeros_have_no_slope() -> None:
    options = PAnnealOptions(width=WIDTH, updates=4, p_end=0.3, anneal_start=0.25)
    sae = options.build(D, rng())
    assert isinstance(sae, PAnneal)
    falls = [sae.falls(step, 101) for step in range(101)]
    assert falls == sorted(falls)
    assert (falls[25], falls[26], falls[-1]) == (0, 1, 4)
    assert [sae.power(n) for n in range(6)] == pytest.approx([1, 0.825, 0.65, 0.475, 0.3, 0.3])
    latents = torch.tensor([[0.0, 4.0, 9.0], [0, 0, 0]], requires_grad=True)
    total = powers(latents, 0.5)
    assert total.tolist() == [5, 0]
    (slopes,) = torch.autograd.grad(total.sum(), latents)
    torch.testing.assert_close(slopes, torch.tensor([[0, 0.25, 1 / 6], [0, 0, 0]]))


ROWS = {
    "normal": lambda n, width, rng: torch.randn(n, width, generator=rng),
    "ties": lambda n, width, rng: torch.randn(n, width, generator=rng).round(),
    "all equal": lambda n, width, rng: torch.zeros(n, width),
    "sorted": lambda n, width, rng: (
        torch.arange(n * width).view(n, width).float() * torch.tensor([1, -1] * n)[:n, None]
    ),
    "infinite": lambda n, width, rng: torch.where(torch.rand(n, width, generator=rng) < 0.3, inf, -inf),
    "one far above": lambda n, width, rng: torch.randn(n, width, generator=rng) * 1e-30 + torch.eye(n, width) * 1e30,
    "apart": lambda n, width, rng: torch.randn(n, width, generator=rng) * 10.0 ** torch.arange(-n, n, 2)[:, None],
}
"""[n, width] numbers on which looking for a bound by halving may find it late or never."""


@given(
    SEEDS,
    st.sampled_from(sorted(ROWS)),
    st.integers(1, 700),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150, deadline=None)
def test_selection_equals_a_stable_sort_to_the_bit(
    seed: int, kind: str, width: int, share: float, dtype: torch.dtype
) -> None:
    """Of equal entries the lower number comes first, wherever they stand and however many there are."""
    pre, k = ROWS[kind](5, width, rng(seed)).to(dtype), max(1, round(share * width))
    found = Codes.empty(5, k, like=pre)
    NUMBA.top_rows(pre, found.values, found.indices)
    wanted = pre.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.values, wanted.values[:, :k])
    assert torch.equal(found.indices, wanted.indices[:, :k])


@given(SEEDS, st.sampled_from(sorted(ROWS)), st.integers(1, 700), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_rounded_products_are_selected_from_after_the_bias_is_added_in_float32(
    seed: int, kind: str, width: int, share: float
) -> None:
    product, k = ROWS[kind](5, width, rng(seed)).bfloat16(), max(1, round(share * width))
    bias = torch.randn(width, generator=rng(seed + 1))
    found, wanted = (Codes.empty(5, k, like=bias) for _ in range(2))
    NUMBA.top_sums(product, bias, found.values, found.indices)
    NUMBA.top_rows(product.float() + bias, wanted.values, wanted.indices)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.indices, wanted.indices)


@pytest.mark.parametrize("hidden", [1, 60, 100])
def test_what_is_not_a_number_is_not_hidden_where_nothing_else_is_left(hidden: int) -> None:
    pre = torch.randn(3, 100, generator=rng())
    pre[1, :hidden] = nan
    found = Codes.empty(3, 50, like=pre)
    NUMBA.top_rows(pre, found.values, found.indices)
    assert found.values[1].isnan().any() or hidden <= 50
    assert torch.equal(found.values[::2], pre[::2].topk(50).values)
    assert ((found.indices >= 0) & (found.indices < 100)).all()


def test_a_product_in_sixteen_bits_is_made_and_selected_from_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentbench.sae.sparse_kernels.autograd.ROUNDED_CHUNK", 250)
    x, weight, bias = (torch.randn(*shape, generator=rng(i)) for i, shape in enumerate([(11, D), (100, D), (100,)]))
    with torch.autocast("cpu", torch.bfloat16):
        found = top_linear(x, weight, bias, 9)
    product = x.bfloat16().float() @ weight.bfloat16().float().t()
    exact = product + bias
    # Half a step of bfloat16 (eight binary digits) of each product; what is left out lies no higher than that below.
    room = product.abs().max() / 2**8
    torch.testing.assert_close(found.values, exact.gather(1, found.indices), rtol=0, atol=float(room))
    assert (found.values[:, -1] >= exact.topk(9).values[:, -1] - room).all()


def test_more_latents_than_there_are_are_refused_before_a_kernel_reads_beyond_them() -> None:
    x, weight = torch.randn(3, 5), torch.randn(8, 5)
    assert top_linear(x, weight, torch.zeros(8), 8).indices.sort(dim=1).values.tolist() == [list(range(8))] * 3
    with pytest.raises(InvalidInput, match="9 active latents cannot exceed the dictionary width 8"):
        top_linear(x, weight, torch.zeros(8), 9)


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
    """A batch's share is the momentum, unless it is one of few so far, or of few altogether."""
    encoder = LinearEncoder(D, WIDTH, rng())
    selection = BatchSelection(K, momentum=0.25)
    first, second = tokens(40, 1), tokens(40, 7) * 2
    codes = selection.train_on(encoder, first, None, 0, 1000)
    assert codes.l0.sum() == K * 40
    assert codes.l0.unique().numel() > 1, "the number of active latents must differ between tokens"
    low = codes.values[codes.values > 0].min()
    assert selection.threshold == low
    for step, steps, share in ((1, 1000, 1 / 2), (2, 1000, 1 / 3), (9, 1000, 0.25), (9, 20, 1 / 2), (3, 5, 1.0)):
        before = selection.threshold.clone()
        chosen = selection.train_on(encoder, second if step % 2 else first, None, step, steps).values
        torch.testing.assert_close(selection.threshold, before.lerp(chosen[chosen > 0].min(), share))


@pytest.mark.parametrize("steps", [60, 240])
@pytest.mark.parametrize(
    "options",
    [
        BatchTopKOptions(width=WIDTH, k=K),
        MatryoshkaOptions(width=WIDTH, k=K, groups=(16, 32)),
        KronOptions(width=WIDTH, k=K, m=2, n=4, selection="batch_topk"),
    ],
    ids=lambda options: options.variant,
)
def test_the_threshold_of_a_short_run_keeps_as_many_latents_as_training_did(options: Variant, steps: int) -> None:
    sae, x = trained(options, steps=steps), tokens(64)
    assert sae.encode(x).l0.double().mean().item() == pytest.approx(K, rel=0.1)


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


@pytest.mark.parametrize(
    "options",
    [
        TopKOptions(width=WIDTH, k=K),
        HierarchicalTopKOptions(width=WIDTH, k=K),
        MatryoshkaOptions(width=WIDTH, k=K, groups=(16, 32), selection="topk"),
        KronOptions(width=WIDTH, k=K, m=2, n=4),
        KronOptions(width=WIDTH, k=K, m=2, n=4, kernel="product"),
        RandomDecoderOptions(width=WIDTH, k=K),
    ],
    ids=lambda options: f"{options.variant} {getattr(options, 'kernel', '')}".strip(),
)
def test_a_budget_above_the_k_of_training_keeps_that_many(options: Variant) -> None:
    sae, x = trained(options), tokens(20, 3)
    assert sae.trained_k == K
    everything = sae.encoder.some(x, torch.arange(WIDTH), sae.shift)
    for budget in (K + 1, 3 * K, WIDTH):
        smallest = everything.sort(dim=1, descending=True).values[:, budget - 1 : budget]
        wanted = torch.where(everything >= smallest, everything, 0)
        torch.testing.assert_close(sae.encode(x, budget).dense(WIDTH), wanted)
    with pytest.raises(InvalidInput, match=f"a budget of {WIDTH + 1} active latents cannot exceed"):
        sae.encode(x, WIDTH + 1)


def test_one_group_of_linear_weights_takes_a_budget_above_its_k_and_several_say_why_not() -> None:
    sae, x = trained(TopKOptions(width=WIDTH, k=K)), tokens(20, 3)
    one = ConcatenatedSAE(sae.linear_weights())
    torch.testing.assert_close(one.encode(x, 3 * K).dense(WIDTH), sae.encode(x, 3 * K).dense(WIDTH))
    (group,), b_dec = sae.linear_weights()
    two = ConcatenatedSAE(LinearWeights((group, group._replace(rule=TopKRule(2))), b_dec))
    assert (one.trained_k, two.trained_k) == (K, K + 2)
    assert two.encode(x, K + 2).l0.max() <= K + 2
    with pytest.raises(InvalidInput, match="nothing says which of them may have more"):
        two.encode(x, K + 3)
    assert trained(BatchTopKOptions(width=WIDTH, k=K)).trained_k is None


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


@pytest.mark.parametrize(
    "options",
    [AbsTopKOptions(width=WIDTH, k=K), MultiTopKOptions(width=WIDTH, k=K), MatchingPursuitOptions(width=WIDTH, k=K)],
    ids=lambda options: options.variant,
)
def test_no_graph_holds_a_number_for_every_latent_of_every_token(options: Variant) -> None:
    """Of N tokens it keeps their hidden states and their active latents, of the dictionary its weights."""
    sae, x, sizes = options.build(D, rng()), tokens(200), list[int]()
    assert isinstance(sae, TrainableSAE)

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 1)
    assert sizes
    assert max(sizes) <= 200 * max(D, 4 * K) < 200 * WIDTH


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


FOLDED: list[Variant] = [
    AbsTopKOptions(width=WIDTH, k=K),
    MultiTopKOptions(width=WIDTH, k=K),
    MatchingPursuitOptions(width=WIDTH, k=K),
    PAnnealOptions(width=WIDTH),
    KronJumpReLUOptions(width=WIDTH, m=2, n=4),
    KronJumpReLUOptions(width=WIDTH, m=2, n=4, kernel="product"),
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
