"""How much memory a training step takes."""

from __future__ import annotations

from harness.bench.train import Shape, compare_memory


def test_a_step_over_all_budgets_takes_hardly_more_memory_than_one_of_top_k() -> None:
    """HierarchicalTopK un-adds atoms in its backward pass: O(N · d_in) as TopK, not O(N · K · d_in) = 302 MB here."""
    shape = Shape(d_in=288, width=8192, k=32, batch=4096)
    found = compare_memory(shape, k=64)
    weights, pre = 2 * 288 * 8192 * 4, 8192 * 4096 * 4
    assert 4 * weights + pre <= found.topk <= 1.5 * (4 * weights + pre)  # weights, gradients, two moments; selection
    assert found.ratio <= 1.3
