"""Do 95 % intervals hold the truth in 95 % of cases, and do tests stay quiet where there is nothing? By simulation.

Planted documents of unequal length and difficulty, and planted latents. Far longer runs are in the test suite.
"""

from __future__ import annotations

import math

import numpy as np

from latentbench.doctor.check import Check, Finding
from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import document_interval
from latentbench.statistics.paired import difference, exchange_test
from latentbench.statistics.unpaired import unpaired_difference, unpaired_test

TRIALS, DOCUMENTS = 400, 60


def interval_checks() -> list[Check]:
    """Coverage and size, of documents and of latents."""
    return [
        Check("intervals over documents hold the truth", "intervals", _coverage),
        Check("intervals of differences hold the truth", "intervals", _coverage_of_differences),
        Check("tests find nothing where nothing is", "intervals", _size),
    ]


def _ratio(total: Array, n: Array) -> Array:
    found: Array = total / n
    return found


def _documents(rng: np.random.Generator, quality: float) -> Array:
    tokens = np.round(rng.lognormal(4.5, 0.5, DOCUMENTS))
    return np.stack([tokens * (quality + 0.1 * rng.normal(size=DOCUMENTS)), tokens], axis=1)


def _latents(rng: np.random.Generator, n: int) -> Array:
    return np.stack([rng.beta(7, 3, n), np.ones(n)], axis=1)


def _coverage() -> Finding:
    rng, held = np.random.default_rng(41), 0
    for _ in range(TRIALS):
        found = document_interval(_ratio, _documents(rng, 0.2))
        held += found is not None and found.low <= 0.2 <= found.high
    return _near("95 % intervals held the truth in", held, TRIALS, 0.95)


def _coverage_of_differences() -> Finding:
    rng, paired, unpaired = np.random.default_rng(42), 0, 0
    for _ in range(TRIALS // 2):
        a = _documents(rng, 0.2)
        b = a + np.stack([a[:, 1] * 0.02 * rng.normal(size=len(a)), np.zeros(len(a))], axis=1)
        one, two = (
            difference(_ratio, [a], [b]),
            unpaired_difference(_ratio, [_latents(rng, 64)], [_latents(rng, 40)], "latents"),
        )
        paired += one.low is not None and one.high is not None and one.low <= 0 <= one.high
        unpaired += two.low is not None and two.high is not None and two.low <= 0 <= two.high
    return _near("intervals of a difference held 0 in", paired + unpaired, 2 * (TRIALS // 2), 0.95)


def _size() -> Finding:
    rng, claims, trials = np.random.default_rng(43), 0, 1500
    for _ in range(trials):
        a = _documents(rng, 0.2)
        b = a + np.stack([a[:, 1] * 0.02 * rng.normal(size=len(a)), np.zeros(len(a))], axis=1)
        found = exchange_test(_ratio, a, b), unpaired_test(_ratio, [_latents(rng, 64)], [_latents(rng, 40)], "latents")
        claims += sum(test.p is not None and test.p <= 0.05 for test in found)
    return _near("tests at 5 % claimed a difference in", claims, 2 * trials, 0.05)


def _near(what: str, count: int, trials: int, rate: float) -> Finding:
    """Within three standard errors of the rate: a right installation fails by chance in 0.3 % of seeds, and these are fixed."""
    error = 3 * math.sqrt(rate * (1 - rate) / trials)
    detail = f"{what} {count / trials:.1%} of {trials} simulations, expected {rate:.0%} ± {error:.1%}"
    return Finding(abs(count / trials - rate) <= error, detail)
