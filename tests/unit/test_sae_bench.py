"""The training benchmark at a toy size: it measures full steps of what it names."""

from __future__ import annotations

from latentbench.bench.train import AUTOCAST, OURS, OURS_ROUNDED, REFERENCE, TORCH_PATH, Shape, compare

SHAPE = Shape(d_in=8, width=128, k=4, batch=16)


def test_every_candidate_is_timed_in_every_round() -> None:
    ticks = iter(range(10_000))
    timings = compare(SHAPE, rounds=2, sae_lens=False, clock=lambda: float(next(ticks)))
    names = [OURS, OURS_ROUNDED, "TopK (k=64)", "HierarchicalTopK (k=64)", "KronSAE (m=4, n=8)"]
    assert [t.candidate for t in timings] == names
    assert all(t.seconds == 1 and t.cost_over_topk == 1 and t.speedup_over_sae_lens is None for t in timings)
    assert next(ticks) == 2 * 2 * len(names)


def test_torch_is_timed_beside_the_kernels() -> None:
    timings = {t.candidate: t for t in compare(SHAPE, rounds=1, sae_lens=False, torch_path=True)}
    assert len(timings) == 10
    assert timings[OURS].speedup_over_torch is not None
    assert timings[OURS + TORCH_PATH].speedup_over_torch is None


def test_ratios_are_those_of_the_same_round() -> None:
    """In float32 and in bfloat16: a round in which all take ten times as long moves no ratio."""
    ticks = iter([t for factor in (1, 10, 1) for seconds in (2, 1, 4, 6, 3, 30, 8) for t in (0.0, factor * seconds)])
    timings = {t.candidate: t for t in compare(SHAPE, rounds=3, clock=lambda: next(ticks))}
    ours, rounded, hierarchical = (timings[name] for name in (OURS, OURS_ROUNDED, "HierarchicalTopK (k=64)"))
    assert (ours.speedup_over_sae_lens, ours.speedup_over_autocast, ours.cost_over_topk) == (15, 4, 1)
    assert (rounded.speedup_over_sae_lens, rounded.speedup_over_autocast, rounded.cost_over_topk) == (30, 8, 0.5)
    assert hierarchical.cost_over_topk == 1.5
    assert timings[REFERENCE].speedup_over_sae_lens == timings[AUTOCAST].speedup_over_autocast == 1
    assert ours.tokens_per_second == SHAPE.batch / 2
