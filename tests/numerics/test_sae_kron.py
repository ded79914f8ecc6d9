"""KronSAE: latents of pairs of parents, and their selection without making all pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentbench.sae.options import KronOptions
from latentbench.sae.sparse_kernels.dispatch import TORCH
from latentbench.sae.variants.kron import KronEncoder, combine
from tests.support.trained import SEEDS, WIDTH, D, rng, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


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
        of_all = TORCH.top_pairs(pre, m, n, kernel == "product", k)
        torch.testing.assert_close(pruned.values, of_all.values, rtol=0, atol=0)
        u, v = (pre.gather(1, rows) for rows in encoder.parents(pruned.indices))
        active = pruned.values > 0
        assert torch.equal((u * v)[active], pruned.values[active])


class Largest(TorchDispatchMode):
    """Sees the largest tensor that any operation makes."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            self.seen = max(self.seen, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return made


@pytest.mark.parametrize("signed", [False, True])
def test_the_pairs_of_all_tokens_never_exist_at_once(signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel prunes (torch's operations, so CUDA too) tokens are taken a few at a time; the choice is the same."""
    pre = torch.randn(30, 12 * 7, generator=rng(1))
    width = 12 * 3 * 4
    whole = TORCH.top_pairs(pre, 3, 4, signed, 5)
    monkeypatch.setattr("latentbench.sae.memory.CHUNK", 4 * width)
    with Largest() as largest:
        parts = TORCH.top_pairs(pre, 3, 4, signed, 5)
    assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.indices, parts.indices)
    assert largest.seen <= pre.numel() < len(pre) * width


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
