"""The training benchmark at a toy size: it measures full steps of what it names."""

from __future__ import annotations

from latentbench.bench.train import OURS, TORCH_PATH, Shape, compare

SHAPE = Shape(d_in=8, width=128, k=4, batch=16)


def test_every_candidate_is_timed_in_every_round() -> None:
    ticks = iter(range(10_000))
    timings = compare(SHAPE, rounds=2, sae_lens=False, clock=lambda: float(next(ticks)))
    assert [t.candidate for t in timings] == [OURS, "TopK (k=64)", "HierarchicalTopK (k=64)", "KronSAE (m=4, n=8)"]
    assert all(t.seconds == 1 and t.cost_over_topk == 1 and t.speedup_over_sae_lens is None for t in timings)
    assert next(ticks) == 2 * 2 * 4


def test_torch_is_timed_beside_the_kernels() -> None:
    timings = {t.candidate: t for t in compare(SHAPE, rounds=1, sae_lens=False, torch_path=True)}
    assert len(timings) == 8
    assert timings[OURS].speedup_over_torch is not None
    assert timings[OURS + TORCH_PATH].speedup_over_torch is None


def test_sae_lens_is_the_reference() -> None:
    timings = {t.candidate: t for t in compare(SHAPE, rounds=1)}
    assert timings["sae-lens TopK"].speedup_over_sae_lens == 1
    assert timings[OURS].speedup_over_sae_lens is not None
    assert timings[OURS].tokens_per_second > 0
