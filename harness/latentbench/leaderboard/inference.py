"""Intervals and tests of rows, by the kind of their evidence: paired where unit i is the same thing in all rows."""

from __future__ import annotations

from dataclasses import replace

from latentbench.leaderboard.evidence import Evidence
from latentbench.leaderboard.statistics import (
    Difference,
    Test,
    difference,
    exchange_test,
    interval,
    mean_over_seeds,
    replicates,
)
from latentbench.leaderboard.unpaired import unpaired_difference, unpaired_interval, unpaired_test


def interval_of(evidence: Evidence) -> tuple[float | None, float | None]:
    """95 % interval of a row's mean over seeds."""
    if evidence.paired:
        return interval(replicates(evidence.formula, evidence.inputs), len(evidence.inputs[0]))
    return unpaired_interval(evidence.formula, evidence.inputs)


def mismatch(a: Evidence, b: Evidence) -> str | None:
    """Why two rows cannot be tested against each other, None when they can."""
    if a.paired and len(a.inputs[0]) != len(b.inputs[0]):
        return f"not testable: different numbers of {a.units}"
    return None


def difference_of(a: Evidence, b: Evidence) -> Difference:
    """A minus B; they must not be mismatched."""
    if a.paired:
        return difference(a.formula, a.inputs, b.inputs, a.units)
    return unpaired_difference(a.formula, a.inputs, b.inputs, a.units)


def tested(a: Evidence, b: Evidence) -> Test:
    """Two-sided test of A against B."""
    if reason := mismatch(a, b):
        return Test(None, reason)
    if a.paired:
        return exchange_test(a.formula, mean_over_seeds(a.inputs), mean_over_seeds(b.inputs), a.units)
    return unpaired_test(a.formula, a.inputs, b.inputs, a.units)


def condensed(evidence: Evidence) -> Evidence:
    """Evidence that gives the same tests at less cost."""
    return replace(evidence, inputs=(mean_over_seeds(evidence.inputs),)) if evidence.paired else evidence
