"""From answers to the scores of a latent, and from latents to the statistics of the study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentbench.metrics.autointerp.details import BudgetDetails, LatentDetail, TestScore
from latentbench.metrics.autointerp.examples import Item
from latentbench.metrics.autointerp.numbers import AREAS, COVERED, FAILURES, RATES, REQUESTS, SAMPLED, SCORED
from latentbench.metrics.base import Array, at_budget


def score_of(items: Sequence[Item], answers: Sequence[float], probabilities: bool) -> TestScore:
    """Rates of right answers, where a probability of at least ½ is a yes. Both truths must occur."""
    truth, given = np.array([item.truth for item in items]), np.array(answers)
    yes = given >= 0.5
    sensitivity, specificity = float(yes[truth].mean()), float(1 - yes[~truth].mean())
    return TestScore(
        true_positive_rate=sensitivity,
        true_negative_rate=specificity,
        balanced_accuracy=(sensitivity + specificity) / 2,
        auroc=area_under_roc(given[truth], given[~truth]) if probabilities else None,
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
    )


def area_under_roc(positives: Array, negatives: Array) -> float:
    """The chance that a true question gets a higher probability than a false one; ties count ½ (Mann-Whitney)."""
    above = (positives[:, None] > negatives).mean()
    return float(above + (positives[:, None] == negatives).mean() / 2)


def statistics(details: BudgetDetails, rows: int, probabilities: bool) -> dict[str, Array]:
    """Statistics [rows] named with the budget: one row per sampled latent, zeros behind."""
    share = details.eligible / details.alive if details.alive else 0.0
    columns: dict[str, list[float]] = {
        name: [] for name in (SAMPLED, SCORED, COVERED, REQUESTS, FAILURES, *RATES, *AREAS * probabilities)
    }
    for latent in details.latents:
        for name, value in _statistics(latent, share, probabilities).items():
            columns[name].append(value)
    padding = [0.0] * (rows - len(details.latents))
    return {at_budget(name, details.budget): np.array(column + padding, float) for name, column in columns.items()}


def _statistics(latent: LatentDetail, share: float, probabilities: bool) -> dict[str, float]:
    counted = {SAMPLED: 1.0, REQUESTS: float(latent.requests), FAILURES: float(latent.failures)}
    if latent.score is None:
        return counted | dict.fromkeys((SCORED, COVERED, *RATES, *AREAS * probabilities), 0.0)
    tests = [test for test in (latent.detection, latent.fuzzing) if test is not None]
    rates = [rate for test in tests for rate in (test.true_positive_rate, test.true_negative_rate)]
    scored = counted | {SCORED: 1.0, COVERED: share} | dict(zip(RATES, rates, strict=True))
    return scored | (dict(zip(AREAS, [test.auroc or 0.0 for test in tests], strict=True)) if probabilities else {})
