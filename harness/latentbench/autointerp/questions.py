"""From collected windows to what is asked about one latent: distinct texts, even quantiles, balanced classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from latentbench.autointerp.definition import ScoringProtocol
from latentbench.autointerp.windows import LatentQuestions, Question, Window
from latentbench.statistics.arrays import Array

_TOP = 4
"""One in four of the windows that a latent is explained from is among its strongest."""


@dataclass(frozen=True)
class ExamplePool:
    """The windows of one latent on one side."""

    reservoir: Sequence[Window]
    """A uniform sample of its peaks, in random order."""
    strongest: Sequence[Window]
    """Strongest first."""
    inactive: Sequence[Window]
    """Windows without it, in random order."""
    hard: frozenset[int] = frozenset()
    """Which of `inactive`, by position, are hard ones: they are taken first."""


def build_questions(
    latent: int, train: ExamplePool, test: ExamplePool, protocol: ScoringProtocol, seed: int
) -> LatentQuestions | str:
    """What is asked about a latent, or the reason why it cannot be scored."""
    used: set[str] = set()
    n, generator = protocol.test, np.random.default_rng(seed)
    top = _distinct(train.strongest, used, protocol.explain // _TOP)
    middle, tested = (_above(pool.reservoir, protocol.from_quantile) for pool in (train, test))
    active = top + _distinct(_evenly(middle, protocol.quantiles), used, protocol.explain - len(top), top)
    inactive = _distinct(_hard_first(train), used, protocol.explain)
    asked = _distinct(_evenly(tested, protocol.quantiles), used, n)
    absent = _distinct(_hard_first(test), used, n)
    if len(active) < protocol.explain or len(asked) < n:
        return "fewer distinct windows with it than are needed"
    if len(inactive) < protocol.explain or len(absent) < n:
        return "too few windows without it: it fires almost everywhere"
    fuzzing = _fuzzing(asked, absent, protocol.fuzzed, generator)
    if fuzzing is None:
        return "too few windows in which other tokens could be marked: it fires on most tokens of its windows"
    hard = {test.inactive[i].text for i in test.hard}
    detection = [Question(window, True) for window in asked] + [Question(window, False) for window in absent]
    return LatentQuestions(
        latent,
        tuple(active),
        tuple(inactive),
        _shuffled(detection, generator),
        _shuffled(fuzzing, generator),
        sum(window.text in hard for window in absent),
    )


def _distinct(windows: Iterable[Window], used: set[str], count: int, others: Sequence[Window] = ()) -> list[Window]:
    """The first `count` that overlap neither each other nor `others` and whose words are not `used`; adds theirs to it."""
    chosen: list[Window] = []
    for window in windows:
        if len(chosen) == count:
            break
        if window.words not in used and not any(window.overlaps(other) for other in (*others, *chosen)):
            chosen.append(window)
            used.add(window.words)
    return chosen


def _above(windows: Sequence[Window], quantile: float) -> Sequence[Window]:
    """Those of which the peak is above a quantile of the peaks, in their order."""
    kept = np.argsort([-window.peak for window in windows], kind="stable")[: ceil((1 - quantile) * len(windows))]
    return [windows[i] for i in sorted(kept.tolist())]


def _evenly(windows: Sequence[Window], quantiles: int) -> list[Window]:
    """All windows, one of each quantile of their peaks in turn, the highest quantile first."""
    order = np.argsort([-window.peak for window in windows], kind="stable")
    parts = [sorted(part.tolist()) for part in np.array_split(order, quantiles)]
    longest = max(map(len, parts), default=0)
    return [windows[part[turn]] for turn in range(longest) for part in parts if turn < len(part)]


def _hard_first(pool: ExamplePool) -> list[Window]:
    numbers = sorted(range(len(pool.inactive)), key=lambda i: i not in pool.hard)
    return [pool.inactive[i] for i in numbers]


def _fuzzing(
    active: Sequence[Window], inactive: Sequence[Window], wrong: int, generator: np.random.Generator
) -> list[Question] | None:
    """2·`wrong` rightly marked windows, `wrong` with other tokens marked and `wrong` without the latent.

    Neither the number nor the place of the marks tells anything. Only windows with as many silent tokens as marks are used
    at all; wrong marks are as many as the right ones would be, those without the latent take their numbers from the
    rightly marked; and wrong marks are drawn to the places where right ones are.
    """
    fit = [w for w in active if sum(w.marks) <= sum(value == 0 for value in w.activations)]
    if len(fit) < 3 * wrong:
        return None
    chosen = [fit[i] for i in generator.permutation(len(fit))]
    right, mismarked = chosen[: 2 * wrong], chosen[2 * wrong : 3 * wrong]
    absent = [inactive[i] for i in generator.permutation(len(inactive))[:wrong]]
    numbers = [sum(right[i].marks) for i in generator.permutation(len(right))[:wrong]]
    numbers = [sum(window.marks) for window in mismarked] + numbers
    places = _places(right)
    items = [Question(window, True, window.marks) for window in right]
    for window, count in zip((*mismarked, *absent), numbers, strict=True):
        items.append(Question(window, False, _silent(window, count, places, generator)))
    return items


def _places(windows: Sequence[Window]) -> Array:
    """[window] how many of the windows are marked at each place, and a little everywhere."""
    longest = max(len(window.tokens) for window in windows)
    places = np.full(longest, 0.1)
    for window in windows:
        places[: len(window.marks)] += window.marks
    return places


def _silent(window: Window, count: int, places: Array, generator: np.random.Generator) -> tuple[bool, ...]:
    """`count` of the tokens on which the latent is inactive, the likelier the more often their place is marked."""
    silent = np.flatnonzero(np.array(window.activations) == 0)
    weights = np.resize(places, len(window.tokens))[silent]
    count = min(count, len(silent))
    chosen = set(generator.choice(silent, count, replace=False, p=weights / weights.sum()).tolist())
    return tuple(i in chosen for i in range(len(window.tokens)))


def _shuffled(items: Sequence[Question], generator: np.random.Generator) -> tuple[Question, ...]:
    return tuple(items[i] for i in generator.permutation(len(items)))
