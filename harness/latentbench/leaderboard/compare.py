"""Two runs side by side: what was done differently, whether they may be compared, and what the difference is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Column, Fact, Value
from latentbench.leaderboard.build import differing_facts, values_of
from latentbench.leaderboard.evidence import MissingStatistics, StatisticsReader, UnitStatistics
from latentbench.leaderboard.inference import difference_of, mismatch
from latentbench.leaderboard.select import Side
from latentbench.records.record import Comparability
from latentbench.statistics.arrays import Array
from latentbench.statistics.paired import ALPHA, TestResult, estimate, holm, seed_test, swap_shares

MOVERS = 5
"""Units that are named where a number's metric asks for it (`Display.movers`)."""
NOTHING_TO_TEST = "one number per run"
"""Why a number of the whole run (parameters, cost) has a difference and no test."""


@dataclass(frozen=True)
class DomainMatch:
    """Whether both sides were measured alike on a domain."""

    domain: str
    comparable: bool
    differs: tuple[Fact, ...]
    """The facts that do not agree: here is B, there is A."""
    reason: str | None = None


@dataclass(frozen=True)
class MetricChange:
    """One number on both sides. The difference is B minus A."""

    column: Column
    a: Value
    b: Value
    difference: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    seeds: TestResult | None = None
    """Sign-flip test over the seeds both sides have."""
    reason: str | None = None
    """Why there is no difference, interval or p-value."""

    @property
    def better(self) -> str | None:
        """Which side is better: `A`, `B`, or None where that cannot be said, by the rule of the leaderboard's ties."""
        if self.a.overlaps(self.b):
            return None
        if self.p_holm is None or self.p_holm > ALPHA or not self.difference or self.column.higher_is_better is None:
            return None
        return "B" if (self.difference > 0) == self.column.higher_is_better else "A"


@dataclass(frozen=True)
class Mover:
    """A document, or another unit that both sides share, on which they differ much."""

    document: int
    """Its position among the domain's units."""
    a: float | None
    b: float | None
    share: float
    """What it contributes to the difference of the totals."""


@dataclass(frozen=True)
class Comparison:
    """A against B."""

    a: Side
    b: Side
    fields: tuple[Fact, ...]
    """Fields of the resolved experiment that differ: there is A's, here is B's."""
    domains: tuple[DomainMatch, ...]
    changes: tuple[MetricChange, ...]
    movers: dict[str, tuple[Mover, ...]]
    """Column key to the documents (or problems) that moved most, largest first."""
    problems: tuple[str, ...]


def compare(a: Side, b: Side, source: StatisticsReader | None = None) -> Comparison:
    """Everything that differs from A to B. Sets of runs are averaged over their seeds and tested on the same units."""
    source = source or StatisticsReader()
    domains = tuple(_domain_matches(a, b))
    comparable = {match.domain for match in domains if match.comparable}
    columns = _columns(a, b)
    ours, theirs = values_of(a.cells, columns, source), values_of(b.cells, columns, source)
    changes = [_change(c, ours[c.key], theirs[c.key], a, b, c.domain in comparable, source) for c in columns]
    moving = [c for c in columns if c.display and c.display.movers and c.domain in comparable]
    movers = {c.key: _movers(c, a, b, source) for c in moving}
    return Comparison(
        a=a,
        b=b,
        fields=differing_facts(b.cells[0].record.resolved, a.cells[0].record.resolved),
        domains=domains,
        changes=tuple(_with_holm(changes)),
        movers={key: found for key, found in movers.items() if found},
        problems=tuple(sorted(source.problems.values())),
    )


def _domain_matches(a: Side, b: Side) -> Iterable[DomainMatch]:
    for domain in dict.fromkeys(d for cell in (*a.cells, *b.cells) for d in cell.record.compared):
        found = [[cell.record.compared.get(domain) for cell in side.cells] for side in (a, b)]
        absent = [name for name, side in zip("AB", found, strict=True) if None in side]
        if absent:
            yield DomainMatch(domain, False, (), f"not measured by {' and '.join(absent)}")
            continue
        agreed = [c for side in found for c in side if c is not None]
        yield DomainMatch(domain, len({c.key for c in agreed}) == 1, _facts(agreed), None)


def _facts(agreed: Sequence[Comparability]) -> tuple[Fact, ...]:
    first = agreed[0]
    other = next((c for c in reversed(agreed) if c.key != first.key), first)
    return differing_facts({"": other.fields}, {"": first.fields}) if other is not first else ()


def _columns(a: Side, b: Side) -> tuple[Column, ...]:
    found = dict.fromkeys(Column.of(m) for cell in (*a.cells, *b.cells) for m in cell.record.metrics)
    return tuple(sorted(found, key=lambda column: column.domain is None))  # of the whole run last


def _change(
    column: Column, a: Value, b: Value, side_a: Side, side_b: Side, comparable: bool, source: StatisticsReader
) -> MetricChange:
    if a.value is None or b.value is None:
        missing = f"A: {a.reason}" if a.value is None else f"B: {b.reason}"
        return MetricChange(column, a, b, None, reason=missing)
    if column.domain is None:
        return MetricChange(column, a, b, b.value - a.value, reason=NOTHING_TO_TEST)
    if not comparable:
        return MetricChange(column, a, b, None, reason="not measured alike on this domain")
    try:
        ours, theirs = source.evidence(side_a.cells, column), source.evidence(side_b.cells, column)
    except MissingStatistics as error:
        return MetricChange(column, a, b, b.value - a.value, reason=str(error))
    if reason := mismatch(ours, theirs):
        return MetricChange(column, a, b, b.value - a.value, reason=reason)
    found = difference_of(theirs, ours)
    seeds = None if column.higher_is_better is None else _seed_test(side_a, side_b, ours, theirs)
    return MetricChange(column, a, b, found.value, found.low, found.high, found.test.p, None, seeds, found.test.reason)


def _seed_test(a: Side, b: Side, ours: UnitStatistics, theirs: UnitStatistics) -> TestResult | None:
    """Paired by seed over the seeds that both sides have; None where each side is one run."""
    if len(a.cells) == len(b.cells) == 1:
        return None
    first = {seed: estimate(ours.formula, [stats]) for seed, stats in zip(a.seeds, ours.inputs, strict=True)}
    second = {seed: estimate(theirs.formula, [stats]) for seed, stats in zip(b.seeds, theirs.inputs, strict=True)}
    return seed_test([second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())])


def _with_holm(changes: list[MetricChange]) -> Iterable[MetricChange]:
    """Adjusted over all numbers that have a direction; numbers without one are not claims."""
    tested = [i for i, c in enumerate(changes) if c.p is not None and c.column.higher_is_better is not None]
    adjusted = dict(zip(tested, holm([changes[i].p or 0.0 for i in tested]), strict=True))
    for i, change in enumerate(changes):
        yield replace(change, p_holm=adjusted[i]) if i in adjusted else change


def _movers(column: Column, a: Side, b: Side, source: StatisticsReader) -> tuple[Mover, ...]:
    try:
        ours, theirs = source.evidence(a.cells, column), source.evidence(b.cells, column)
    except MissingStatistics:
        return ()
    if not ours.paired or mismatch(ours, theirs):
        return ()
    first, second = np.mean(ours.inputs, axis=0), np.mean(theirs.inputs, axis=0)
    shares, _ = swap_shares(ours.formula, second, first)
    order = [int(i) for i in np.argsort(-np.abs(shares), kind="stable")[:MOVERS] if shares[i] != 0]
    alone = [_per_document(ours, stats) for stats in (first, second)]
    return tuple(Mover(i, _finite(alone[0][i]), _finite(alone[1][i]), float(shares[i])) for i in order)


def _per_document(evidence: UnitStatistics, stats: Array) -> Array:
    """[documents] the number computed from each document alone."""
    with np.errstate(all="ignore"):
        return np.broadcast_to(evidence.formula(*stats.T), len(stats))


def _finite(value: Json) -> float | None:
    return float(value) if np.isfinite(value) else None
