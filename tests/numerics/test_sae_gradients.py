"""Gradients of every native variant against dense autograd in float64, written from the formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentbench.sae.autoencoder import TrainableSAE
from latentbench.sae.options import (
    AbsTopKOptions,
    BatchTopKOptions,
    BoostedOptions,
    ExtendedOptions,
    FineTunedOptions,
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
    StitchedOptions,
    TopKOptions,
    Variant,
)

D, WIDTH, K, N = 12, 48, 5, 33
TOLERANCE = 1e-6
Weights = dict[str, Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["kernels", "torch"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr("latentbench.sae.sparse_kernels.dispatch.FORCED", "torch")


def made(options: Variant, *bases: TrainableSAE) -> TrainableSAE:
    generator = torch.Generator().manual_seed(3)
    sae = options.build(D, generator, bases)
    assert isinstance(sae, TrainableSAE)
    for parameter in sae.parameters():  # no parameter at a special value
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return sae.double()


def tokens(n: int = N) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 2 + 0.3


def kept(latents: Tensor, k: int) -> Tensor:
    """Dense latents with all but the k largest of each row set to zero."""
    mask = torch.zeros_like(latents).scatter_(1, latents.detach().topk(k, dim=1).indices, 1)
    return latents * mask


def kept_of_batch(latents: Tensor, total: int) -> Tensor:
    mask = torch.zeros(latents.numel(), dtype=latents.dtype)
    mask[latents.detach().flatten().topk(total).indices] = 1
    return latents * mask.view_as(latents)


def kept_by_magnitude(latents: Tensor, k: int) -> Tensor:
    return latents * torch.zeros_like(latents).scatter_(1, latents.detach().abs().topk(k, dim=1).indices, 1)


def error(latents: Tensor, w: Weights, x: Tensor) -> Tensor:
    return (x - latents @ w["W_dec"] - w["b_dec"]).pow(2).sum(1).mean()


def signed(w: Weights, x: Tensor) -> Tensor:
    return (x - w["b_dec"]) @ w["encoder.weight"].t() + w["encoder.bias"]


def linear(w: Weights, x: Tensor) -> Tensor:
    return signed(w, x).relu()


def pairs(w: Weights, x: Tensor, m: int, n: int, kernel: str) -> Tensor:
    pre = (x @ w["encoder.weight"].t() + w["encoder.bias"]).view(len(x), -1, m + n)
    u, v = pre[..., :m, None], pre[..., None, m:]
    both = (u > 0) & (v > 0)
    if kernel == "product":
        return (u * v).relu().reshape(len(x), -1)
    if kernel == "relu_product":
        return (u.relu() * v.relu()).reshape(len(x), -1)
    return torch.where(both, torch.where(both, u * v, 1).sqrt(), 0).reshape(len(x), -1)


def over_budgets(latents: Tensor, budgets: tuple[int, ...], w: Weights, x: Tensor) -> Tensor:
    return torch.stack([error(kept(latents, j), w, x) for j in budgets]).mean()


def over_groups(latents: Tensor, ends: tuple[int, ...], w: Weights, x: Tensor) -> Tensor:
    inside = [(torch.arange(WIDTH) < end).to(latents) for end in ends]
    return torch.stack([error(latents * mask, w, x) for mask in inside]).mean()


def pursued(w: Weights, x: Tensor, k: int) -> Tensor:
    """Dense codes of greedy pursuit, every step with all of autograd."""
    left, codes = x - w["b_dec"], x.new_zeros(len(x), WIDTH)
    for _ in range(k):
        found = left @ w["W_dec"].t()
        one = torch.nn.functional.one_hot(found.detach().argmax(1), WIDTH) * found.relu()
        codes, left = codes + one, left - one @ w["W_dec"]
    return codes


def auxk(latents: Tensor, w: Weights, x: Tensor, codes: Tensor, dead: Tensor, aux_k: int) -> Tensor:
    residual = (x - codes @ w["W_dec"] - w["b_dec"]).detach()
    revived = kept(torch.where(dead, latents, -1), aux_k).relu()
    return (residual - revived @ w["W_dec"]).pow(2).sum(1).mean()


ALL = tuple(range(1, K + 1))
CASES: dict[str, tuple[Variant, Callable[[Weights, Tensor], Tensor]]] = {
    "topk": (TopKOptions(width=WIDTH, k=K), lambda w, x: error(kept(linear(w, x), K), w, x)),
    "abs_topk": (AbsTopKOptions(width=WIDTH, k=K), lambda w, x: error(kept_by_magnitude(signed(w, x), K), w, x)),
    "multi_topk": (
        MultiTopKOptions(width=WIDTH, k=K),
        lambda w, x: error(kept(linear(w, x), K), w, x) + error(kept(linear(w, x), 4 * K), w, x) / 8,
    ),
    "multi_topk, other multiple": (
        MultiTopKOptions(width=WIDTH, k=K, multiple=2, multiple_weight=0.7),
        lambda w, x: error(kept(linear(w, x), K), w, x) + 0.7 * error(kept(linear(w, x), 2 * K), w, x),
    ),
    "matching_pursuit": (MatchingPursuitOptions(width=WIDTH, k=K), lambda w, x: error(pursued(w, x, K), w, x)),
    "matching_pursuit, more steps than dimensions": (
        MatchingPursuitOptions(width=WIDTH, k=2 * D),
        lambda w, x: error(pursued(w, x, 2 * D), w, x),
    ),
    "batch_topk": (
        BatchTopKOptions(width=WIDTH, k=K),
        lambda w, x: error(kept_of_batch(linear(w, x), K * len(x)), w, x),
    ),
    "hierarchical": (HierarchicalTopKOptions(width=WIDTH, k=K), lambda w, x: over_budgets(linear(w, x), ALL, w, x)),
    "hierarchical, some budgets": (
        HierarchicalTopKOptions(width=WIDTH, k=K, budgets=(1, 4)),
        lambda w, x: over_budgets(linear(w, x), (1, 4), w, x),
    ),
    "matryoshka": (
        MatryoshkaOptions(width=WIDTH, k=K, groups=(6, 12, 30)),
        lambda w, x: over_groups(kept_of_batch(linear(w, x), K * len(x)), (6, 18, 48), w, x),
    ),
    "matryoshka per token": (
        MatryoshkaOptions(width=WIDTH, k=K, groups=(6, 12, 30), selection="topk"),
        lambda w, x: over_groups(kept(linear(w, x), K), (6, 18, 48), w, x),
    ),
    "kron": (
        KronOptions(width=WIDTH, k=K, m=2, n=4),
        lambda w, x: error(kept(pairs(w, x, 2, 4, "mand"), K), w, x),
    ),
    "kron, relu product, batch": (
        KronOptions(width=WIDTH, k=K, m=3, n=4, kernel="relu_product", selection="batch_topk"),
        lambda w, x: error(kept_of_batch(pairs(w, x, 3, 4, "relu_product"), K * len(x)), w, x),
    ),
    "kron, nested groups": (
        KronOptions(width=WIDTH, k=K, m=2, n=4, groups=(8, 16, 24)),
        lambda w, x: over_groups(kept(pairs(w, x, 2, 4, "mand"), K), (8, 24, 48), w, x),
    ),
    "kron, nested groups, batch": (
        KronOptions(width=WIDTH, k=K, m=2, n=3, groups=(6, 42), kernel="product", selection="batch_topk"),
        lambda w, x: over_groups(kept_of_batch(pairs(w, x, 2, 3, "product"), K * len(x)), (6, 48), w, x),
    ),
    "kron, product, hierarchical": (
        KronOptions(width=WIDTH, k=K, m=2, n=2, kernel="product", selection="hierarchical"),
        lambda w, x: over_budgets(pairs(w, x, 2, 2, "product"), ALL, w, x),
    ),
}


def gradients(loss: Tensor, weights: Weights) -> Weights:
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: g if g is not None else torch.zeros_like(weights[name]) for name, g in zip(weights, found, strict=True)
    }


def assert_same(sae: TrainableSAE, loss: Tensor, reference: Callable[[Weights], Tensor]) -> None:
    names = [name for name, p in sae.named_parameters() if p.requires_grad]
    own = dict(zip(names, torch.autograd.grad(loss, [sae.get_parameter(n) for n in names]), strict=True))
    weights = {n: p.detach().clone().requires_grad_(n in names) for n, p in sae.named_parameters()}
    wanted_loss = reference(weights)
    wanted = gradients(wanted_loss, {n: weights[n] for n in names})
    torch.testing.assert_close(loss.detach(), wanted_loss.detach(), rtol=1e-10, atol=0)
    for name in names:
        assert wanted[name].abs().max() > 0, f"the reference gives {name} no gradient: nothing is tested"
        worst = (own[name] - wanted[name]).abs().max() / wanted[name].abs().max()
        assert worst <= TOLERANCE, f"{name}: relative error {worst:.2e}"


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_selected_variants(case: str) -> None:
    options, reference = CASES[case]
    sae, x = made(options), tokens()
    loss = sae.loss(x, torch.zeros(sae.width, dtype=torch.bool), 0, 10)
    assert_same(sae, loss.total, lambda w: reference(w, x))


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("dead_count", [3, 20])
@pytest.mark.parametrize("dense", [0, 16])
@pytest.mark.parametrize("kind", ["topk", "mand", "product"])
def test_gradients_with_dead_latents(dead_count: int, kind: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """AuxK: fewer dead latents than aux_k (all of them reconstruct) and more (the strongest do), each in both ways."""
    monkeypatch.setattr("latentbench.sae.dictionary.DENSE_AUXK_FACTOR", dense)
    kron = kind != "topk"
    common = {"width": WIDTH, "k": K, "aux_k": 8, "aux_coefficient": 0.7}
    options = TopKOptions(**common) if kind == "topk" else KronOptions(m=2, n=4, **{**common, "kernel": kind})
    sae = made(options)
    x, dead = tokens(), torch.zeros(WIDTH, dtype=torch.bool)
    dead[torch.arange(dead_count) * 2] = True

    def reference(w: Weights) -> Tensor:
        latents = pairs(w, x, 2, 4, kind) if kron else linear(w, x)
        codes = kept(latents, K)
        return error(codes, w, x) + 0.7 * auxk(latents, w, x, codes, dead, min(8, dead_count))

    assert_same(sae, sae.loss(x, dead, 0, 10).total, reference)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("dead_count", [3, 20])
@pytest.mark.parametrize("dense", [0, 16])
@pytest.mark.parametrize("kind", ["abs_topk", "multi_topk"])
def test_gradients_with_dead_latents_by_magnitude_and_of_the_narrow_codes(
    dead_count: int, kind: str, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AbsTopK revives the dead latents of largest magnitude; Multi-TopK's AuxK learns what k latents, not 4k, leave."""
    monkeypatch.setattr("latentbench.sae.dictionary.DENSE_AUXK_FACTOR", dense)
    common = {"width": WIDTH, "k": K, "aux_k": 8, "aux_coefficient": 0.7}
    sae = made(AbsTopKOptions(**common) if kind == "abs_topk" else MultiTopKOptions(**common))
    x, dead = tokens(), torch.arange(WIDTH) < dead_count

    def reference(w: Weights) -> Tensor:
        if kind == "multi_topk":
            codes = kept(linear(w, x), K)
            fit = error(codes, w, x) + error(kept(linear(w, x), 4 * K), w, x) / 8
            return fit + 0.7 * auxk(linear(w, x), w, x, codes, dead, min(8, dead_count))
        codes = kept_by_magnitude(signed(w, x), K)
        revived = kept_by_magnitude(signed(w, x) * dead, 8)
        left = (x - codes @ w["W_dec"] - w["b_dec"]).detach()
        return error(codes, w, x) + 0.7 * (left - revived @ w["W_dec"]).pow(2).sum(1).mean()

    assert_same(sae, sae.loss(x, dead, 0, 10).total, reference)


@pytest.mark.parametrize("kind", ["topk", "boosted"])
def test_normalised_auxk_is_relative_to_the_variance_of_the_error(kind: str) -> None:
    """What is reconstructed is x, or for boosting the base's error; its variance over that of what is still left of it."""
    topk = TopKOptions(width=WIDTH, k=K, aux_k=8, aux_coefficient=0.7, aux_loss="normalised")
    sae, x = made(topk), tokens()
    target = x if kind == "topk" else x.roll(1, 0) ** 2
    dead = torch.arange(WIDTH) % 7 == 0

    def variance(part: Tensor) -> Tensor:
        return (part - part.mean(0)).pow(2).sum(1).mean()

    def reference(w: Weights) -> Tensor:
        latents = linear(w, x)
        left = target - kept(latents, K) @ w["W_dec"] - w["b_dec"]
        revived = kept(torch.where(dead, latents, -1), int(dead.sum())).relu() @ w["W_dec"]
        aux = (left.detach() - revived).pow(2).sum(1).mean()
        return left.pow(2).sum(1).mean() + 0.7 * aux * (variance(target) / variance(left)).detach()

    assert_same(sae, sae.loss_on(x, target, dead, 0, 10).total, reference)


def test_normalised_auxk_has_nothing_to_revive_where_the_error_is_the_same_everywhere() -> None:
    sae, x = made(TopKOptions(width=WIDTH, k=K, aux_loss="normalised")), torch.ones(N, D, dtype=torch.float64)
    loss = sae.loss(x, torch.arange(WIDTH) % 7 == 0, 0, 10)
    assert loss.auxiliary == 0
    assert torch.isfinite(loss.total)


def test_many_dead_latents_have_no_dense_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps of AuxK grows with aux_k and not with the number of dead latents."""
    sizes: dict[int, int] = {}
    for dense in (0, 16):
        monkeypatch.setattr("latentbench.sae.dictionary.DENSE_AUXK_FACTOR", dense)
        sae, x = made(TopKOptions(width=WIDTH, k=K, aux_k=2)), tokens()
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() if len(tensor) == N else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sae.auxiliary(x, x, torch.arange(WIDTH) < 30)
        sizes[dense] = max(kept.values())
    assert sizes == {0: N * D, 16: N * 30}


@pytest.mark.usefixtures("_path")
def test_gradients_with_a_frozen_decoder() -> None:
    sae, x = made(RandomDecoderOptions(width=WIDTH, k=K)), tokens()
    loss = sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 10)
    assert_same(sae, loss.total, lambda w: error(kept(linear(w, x), K), w, x))
    assert not sae.get_parameter("W_dec").requires_grad


@pytest.mark.usefixtures("_path")
def test_gradients_of_boosting() -> None:
    """Input x, target x − x̂_base, no decoder bias."""
    base = made(TopKOptions(width=20, k=3))
    sae, x = made(BoostedOptions(base=TopKOptions(width=20, k=3), width=WIDTH, k=K), base), tokens()
    sae.begin(torch.zeros(D, dtype=torch.float64), 1.0)
    sae.get_parameter("residual.encoder.bias").data += 0.05
    sae.get_parameter("residual.b_dec").data.zero_()
    target = x - base(x)

    def reference(w: Weights) -> Tensor:
        latents = (x @ w["residual.encoder.weight"].t() + w["residual.encoder.bias"]).relu()
        return (target - kept_of_batch(latents, K * len(x)) @ w["residual.W_dec"]).pow(2).sum(1).mean()

    assert_same(sae, sae.loss(x, torch.zeros(sae.width, dtype=torch.bool), 0, 10).total, reference)


TOP, JUMP = TopKOptions(width=20, k=3), JumpReLUOptions(width=20, initial_threshold=0.3)
TUNED: dict[str, tuple[Variant, Variant, int]] = {
    "fine-tuned": (FineTunedOptions(base=TOP), TOP, 3),
    "fine-tuned, more active": (FineTunedOptions(base=TOP, k=6), TOP, 6),
    "stitched": (StitchedOptions(base=TOP, grafted=5), TOP, 3),
    "extended": (ExtendedOptions(base=TOP, extra_width=12, extra_k=2), TOP, 5),
    "extended, copies": (ExtendedOptions(base=TOP, extra_width=12, extra_k=2, init="most_active"), TOP, 5),
    "fine-tuned on thresholds": (FineTunedOptions(base=JUMP, k=4), JUMP, 4),
    "stitched on thresholds": (StitchedOptions(base=JUMP, k=4, grafted=5), JUMP, 4),
    "extended on thresholds": (ExtendedOptions(base=JUMP, k=4, extra_width=12, extra_k=2), JUMP, 6),
}


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("dead_count", [0, 6])
@pytest.mark.parametrize("case", TUNED)
def test_gradients_of_baselines_that_train_a_base(case: str, dead_count: int) -> None:
    """They read x itself; thresholds become BatchTopK; what is old in an extended SAE has gradient exactly zero."""
    options, below, k = TUNED[case]
    sae, x = made(options, made(below)), tokens()
    sae.aux_coefficient, sae.aux_k = 0.7, 4
    old = 20 if isinstance(options, ExtendedOptions) else 0
    dead = torch.zeros(sae.width, dtype=torch.bool)
    dead[old : old + dead_count] = True  # an extended SAE revives new latents only
    sae.loss(x, dead, 0, 10)  # the first step is where copies are made; they must differ or ties are told apart anyhow
    for parameter in sae.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
    loss = sae.loss(x, dead, 1, 10).total

    def reference(w: Weights) -> Tensor:
        latents = (x @ w["encoder.weight"].t() + w["encoder.bias"]).relu()
        codes = kept(latents, k) if below is TOP else kept_of_batch(latents, k * len(x))
        found = error(codes, w, x)
        return found + 0.7 * auxk(latents, w, x, codes, dead, min(4, dead_count)) if dead_count else found

    loss.backward()  # what stays as it is is masked when a gradient has been added up
    weights = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in sae.named_parameters()}
    wanted_loss = reference(weights)
    torch.testing.assert_close(loss.detach(), wanted_loss.detach(), rtol=1e-10, atol=0)
    wanted = gradients(wanted_loss, {n: w for n, w in weights.items() if w.requires_grad})
    assert wanted.keys() >= {"encoder.weight", "encoder.bias", "W_dec"}
    assert ("b_dec" in wanted) is not bool(old)
    for name, gradient in wanted.items():
        own = sae.get_parameter(name).grad
        assert own is not None
        assert gradient[old:].abs().max() > 0
        assert (own[old:] - gradient[old:]).abs().max() <= TOLERANCE * gradient[old:].abs().max(), name
        assert not own[:old].any()


def test_gradients_of_standard() -> None:
    sae, x = made(StandardOptions(width=WIDTH, l1_coefficient=0.3, sparsity_warmup=0)), tokens()

    def reference(w: Weights) -> Tensor:
        z = ((x - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]).relu()
        l1 = (z * w["W_dec"].pow(2).sum(1).sqrt()).sum(1).mean()
        return error(z, w, x) + 0.3 * D**0.5 * l1

    assert_same(sae, sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 10).total, reference)


def test_gradients_of_p_annealing_at_every_stage() -> None:
    """λ √d c Σ zᵖ with p = 1 − 0.8 n / 4; c keeps the penalty of the latest batches when p falls (2408.00113)."""
    options = PAnnealOptions(width=WIDTH, l1_coefficient=0.3, sparsity_warmup=0, anneal_start=0.2, updates=4, queue=2)
    sae, steps = made(options), 20
    strength, recent, stages = 1.0, [], []
    for step in range(steps):
        x = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) * 2
        falls = 0 if step <= 4 else min(4, -(-(step - 4) // 4))
        if falls and falls != stages[-1]:
            strength *= sum(now for now, _ in recent[-2:]) / sum(later for _, later in recent[-2:])
        stages.append(falls)
        p, later = 1 - 0.8 * falls / 4, 1 - 0.8 * min(4, falls + 1) / 4

        def reference(w: Weights, x: Tensor = x, p: float = p, c: float = strength) -> Tensor:
            z = ((x - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]).relu()
            penalty = torch.stack([row[row > 0].pow(p).sum() for row in z]).mean()
            return error(z, w, x) + 0.3 * D**0.5 * c * penalty

        assert_same(sae, sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), step, steps).total, reference)
        z = sae.encode(x).values
        recent.append([float(z[z > 0].pow(power).sum()) / N for power in (p, later)])
    assert [stages.count(n) for n in range(5)] == [5, 4, 4, 4, 3]
    assert strength != 1


def test_gradients_of_gated() -> None:
    sae, x = made(GatedOptions(width=WIDTH, l1_coefficient=0.3, sparsity_warmup=0)), tokens()

    def reference(w: Weights) -> Tensor:
        gate = (x - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]
        size = (x - w["b_dec"]) @ (w["W_enc"] * w["r_mag"].exp()[:, None]).t() + w["b_mag"]
        z = (gate.detach() > 0).double() * F.relu(size)
        frozen = {"W_dec": w["W_dec"].detach(), "b_dec": w["b_dec"].detach()}
        return error(z, w, x) + 0.3 * D**0.5 * gate.relu().sum(1).mean() + error(gate.relu(), frozen, x)

    assert_same(sae, sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 10).total, reference)


def test_gradients_of_jumprelu() -> None:
    """Weights against autograd; thresholds against the paper's estimators, written out (2407.14435, §3)."""
    options = JumpReLUOptions(width=WIDTH, l0_coefficient=0.05, bandwidth=0.5, initial_threshold=0.4, sparsity_warmup=0)
    sae, x = made(options), tokens()

    def reference(w: Weights) -> Tensor:
        pre, theta = ((x - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]).relu(), w["log_threshold"].exp()
        on, near = (pre > theta).double(), ((pre - theta).abs() < 0.25).double().detach()
        z = pre * on.detach() + _value_zero(-(theta.detach() / 0.5) * near, theta)
        l0 = (on.detach() + _value_zero(-near / 0.5, theta)).sum(1).mean()
        return error(z, w, x) + 0.05 * D * l0

    assert_same(sae, sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 10).total, reference)


@pytest.mark.parametrize("kernel", ["mand", "relu_product", "product"])
def test_gradients_of_kron_jumprelu(kernel: str) -> None:
    """As those of JumpReLU, with pairs in place of pre-activations."""
    sizes = {"width": WIDTH, "m": 2, "n": 4, "kernel": kernel}
    penalty = {"l0_coefficient": 0.05, "bandwidth": 0.5, "initial_threshold": 0.4, "sparsity_warmup": 0, "target_l0": 6}
    sae, x = made(KronJumpReLUOptions(**sizes, **penalty)), tokens()

    def reference(w: Weights) -> Tensor:
        found, theta = pairs(w, x, 2, 4, kernel), w["log_threshold"].exp()
        on, near = (found > theta).double(), ((found - theta).abs() < 0.25).double().detach()
        z = found * on.detach() + _value_zero(-(theta.detach() / 0.5) * near, theta)
        l0 = (on.detach() + _value_zero(-near / 0.5, theta)).sum(1).mean()
        return error(z, w, x) + 0.05 * D * 6 * (l0 / 6 - 1).pow(2)

    assert_same(sae, sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 10).total, reference)


def _value_zero(slope: Tensor, variable: Tensor) -> Tensor:
    """Zero, with derivative `slope` [N, width] by `variable` [width]."""
    return slope * (variable - variable.detach())
