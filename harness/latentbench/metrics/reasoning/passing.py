"""pass@k from n answers to each problem."""

from __future__ import annotations

from latentbench.metrics.base import Array


def ks_of(samples: int) -> tuple[int, ...]:
    """The k of pass@k that are reported besides 1 (the accuracy) and n: powers of two between them."""
    return tuple(2**power for power in range(1, samples.bit_length()) if 2**power < samples)


def pass_at(k: int, samples: int, right: Array) -> Array:
    """[problems] 1 − C(n−c, k) / C(n, k) for c [problems] right answers of n.

    The unbiased estimate of the chance that one of k answers is right (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    import numpy as np
    from scipy.special import comb

    return np.asarray(1 - comb(samples - right, k) / comb(samples, k), dtype=np.float64)
