"""Rates and remaining time: the one place where counts of work become what people are shown.

A meter belongs to one piece of work and stands in the process that does it, so that neither a slow pipe nor a slow
screen changes what it measures. It may be told of every batch: most calls only keep what they were given, and at most two
messages a second leave it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import exp, isfinite
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from latentbench.core.progress import Count, WorkProgress

SECONDS_BETWEEN = 0.5
"""Between two messages of one piece of work."""
_LONGEST_TITLE, _LONGEST_NAME, _MOST_NUMBERS, _MOST_CELLS, KEY_DIGITS = 300, 40, 4, 32, 8
"""What a message may hold: one of up to 4,096 bytes goes through a pipe at once or not at all."""
_MEMORY_SECONDS, _MEMORY_SHARE = 60.0, 0.25
"""What the last minute did weighs most in a rate, or the last quarter of a longer time: long enough for work that goes in
waves, such as reading hidden states and then learning from them."""
_PAUSE_SECONDS, _PAUSE_TIMES = 60.0, 10.0
"""A silence is a pause when it is longer than this, and so many times longer than any before and than its work takes."""


@dataclass
class RateEstimator:
    """Units per second from counts and the times at which they were seen.

    Recent ones weigh more. A pause (a suspended machine, a stopped process) counts as the longest silence before it; one
    that comes again is no pause but how the work goes, and counts in full.
    """

    _last: tuple[float, float] | None = None
    """Time and count."""
    _units: float = 0.0
    _seconds: float = 0.0
    _elapsed: float = 0.0
    _longest: float = 0.0
    _silences: int = 0

    def see(self, now: float, count: float) -> None:
        """Notes a count, the first of which is where the work begins; one that has not risen changes nothing."""
        if self._last is None:
            self._last = now, count
        elif count > self._last[1]:
            silence, made = max(0.0, now - self._last[0]), count - self._last[1]
            worked = self._longest if self._is_pause(silence, made) else silence
            self._elapsed += worked
            kept = exp(-worked / max(_MEMORY_SECONDS, _MEMORY_SHARE * self._elapsed))
            self._units, self._seconds = self._units * kept + made, self._seconds * kept + worked
            self._longest, self._silences = max(self._longest, silence), self._silences + 1
            self._last = now, count

    @property
    def rate(self) -> float | None:
        """None before any work has taken time."""
        return self._units / self._seconds if self._seconds > 0 else None

    def _is_pause(self, silence: float, made: float) -> bool:
        expected = made / self.rate if self.rate else silence
        return (
            self._silences >= 3 and silence > _PAUSE_SECONDS and silence > _PAUSE_TIMES * max(self._longest, expected)
        )


@dataclass(frozen=True)
class _Told:
    """What the work said in one call."""

    done: float
    total: float
    unit: str
    part: str
    before: float
    pace: Count | None
    numbers: dict[str, Any]

    def checked(self) -> _Told | None:
        """The same with finite numbers alone, whatever the work calls numbers; None when the counts are none."""
        pace = self.pace and (_number(self.pace.done), _number(self.pace.total), str(self.pace.unit))
        done, total, before = _number(self.done), _number(self.total), _number(self.before)
        if done is None or total is None or before is None:
            return None
        whole = Count(pace[0], pace[1], pace[2]) if pace and pace[0] is not None and pace[1] is not None else None
        return _Told(min(max(0.0, done), total), total, str(self.unit), str(self.part), before, whole, self.numbers)

    @property
    def phase(self) -> tuple[str, str, float, float, str]:
        """What changes when another pass begins, or when it becomes known what an earlier run had done."""
        return self.part, self.unit, self.total, self.before, self.pace.unit if self.pace else ""


class ProgressMeter:
    """The `Progress` of a piece of work, which becomes messages. A context: leaving it says that the work has ended."""

    def __init__(
        self,
        what: str,
        send: Callable[[WorkProgress], None],
        cells: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cells`: keys of the cells that the work is done for."""
        self._what, self._send, self._clock = what[:_LONGEST_TITLE], send, clock
        self._cells = tuple(key[:KEY_DIGITS] for key in cells[:_MOST_CELLS])
        self._work, self._began = token_hex(6), clock()
        self._latest: _Told | None = None
        """What was told last, and has perhaps not been looked at."""
        self._seen: _Told | None = None
        self._message: WorkProgress | None = None
        self._sent = float("-inf")
        self._rate = RateEstimator()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look(self._clock())
        if self._message:  # work that was found done already is not heard of
            last = self._message if kind else replace(self._message, what=self._what)  # not its last part alone is done
            self._send(replace(last, end="stopped" if kind else "done"))

    def __call__(
        self,
        done: float,
        total: float,
        unit: str = "steps",
        *,
        part: str = "",
        before: float = 0,
        pace: Count | None = None,
        **numbers: Any,
    ) -> None:
        """Takes what the work tells (`latentbench.core.progress.Progress`)."""
        last, now = self._latest, self._clock()
        self._latest = _Told(done, total, unit, part, before, pace, numbers)
        if last is None or (last.part, last.unit, last.total, last.before) != (part, unit, total, before):
            self._look(now)  # where a part begins is what its speed goes by, whether it is sent or not
        if now - self._sent >= SECONDS_BETWEEN:
            self._look(now)
            if self._message:
                self._sent = now
                self._send(self._message)

    def _look(self, now: float) -> None:
        """Takes in what was told last."""
        told = self._latest.checked() if self._latest else None
        if told is None:
            return
        if self._seen is None or self._seen.phase != told.phase or told.done < self._seen.done:
            self._rate = RateEstimator()
        self._seen, pace = told, told.pace or Count(told.done, told.total, told.unit)
        self._rate.see(now, pace.done if told.pace else told.done - told.before)
        rate = self._rate.rate
        self._message = WorkProgress(
            self._work,
            ", ".join(filter(None, (self._what, told.part)))[:_LONGEST_TITLE],
            told.done,
            told.total,
            told.unit[:_LONGEST_NAME],
            told.before,
            now - self._began,
            rate,
            pace.unit[:_LONGEST_NAME],
            max(0.0, pace.total - pace.done) / rate if rate else None,
            dict(_ranges(told.numbers)),
            self._cells,
        )


def _ranges(numbers: dict[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    for name, given in list(numbers.items())[:_MOST_NUMBERS]:
        values = [_number(value) for value in (given if isinstance(given, list | tuple) else [given])]
        finite = [value for value in values if value is not None]
        if finite:
            yield name[:_LONGEST_NAME], (min(finite), max(finite))


def _number(value: Any) -> float | None:
    """A finite number, or None: progress is for people who watch, and fails no work."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's, for tensors of many
        return None
    return number if isfinite(number) else None


@dataclass
class OpenWork:
    """The pieces of work that a process has begun and not ended; should it be lost, somebody must end them."""

    _open: dict[str, WorkProgress] = field(default_factory=dict)

    def see(self, message: WorkProgress) -> None:
        """Takes note of a message on its way."""
        if message.end:
            self._open.pop(message.work, None)
        else:
            self._open[message.work] = message

    def end(self) -> list[WorkProgress]:
        """The messages that the process owes, once."""
        owed = [replace(message, end="stopped") for message in self._open.values()]
        self._open.clear()
        return owed
