"""How far a piece of work has come: what the work itself tells (`Progress`), and what people are shown (`WorkProgress`).

Work counts, and nothing else: what makes rates and remaining time of the counts stands in one place,
`harness/latentbench/distributed/progress_meter.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Count:
    """So many of so many."""

    done: float
    total: float
    unit: str
    """In the plural: tokens, documents, problems."""


End = Literal["", "done", "stopped"]
"""Whether work goes on, was done, or ended before it was."""


class Progress(Protocol):
    """Is told how far a piece of work has come, as often as the work likes; it keeps nothing and raises nothing."""

    def __call__(
        self,
        done: float,
        total: float,
        unit: str = "steps",
        *,
        part: str = "",
        before: float = 0,
        pace: Count | None = None,
        **numbers: float | Sequence[float],
    ) -> None:
        """`done` of `total`, in a `unit` in the plural.

        Speed is taken from the first call on, which therefore is best made when the work begins. `before`: how much of
        `done` an earlier run had done, which took no time of this one. `pace`: what speed and remaining time go by, where
        steps are too unlike or too large (documents of unequal length, optimiser steps of many rollouts). `part`: which of
        several passes this is, each counted from its own beginning. `numbers`: what else is worth seeing, by name, a loss or
        a reward; of several values the lowest and the highest are shown.
        """


def unwatched(done: float, total: float, unit: str = "steps", **told: Any) -> None:
    """The `Progress` of work that nobody watches."""


@dataclass(frozen=True)
class WorkProgress:
    """How far a piece of work has come, as it travels to whoever shows it."""

    work: str
    """Unlike that of any other piece of work."""
    what: str
    """What is being done, for people."""
    done: float
    total: float
    unit: str
    before: float = 0.0
    """How much of `done` an earlier run had done."""
    seconds: float = 0.0
    """Since it began."""
    rate: float | None = None
    """Units per second; None until enough is known."""
    rate_unit: str = ""
    """Of what the rate is."""
    left: float | None = None
    """Seconds until it is done; None until enough is known."""
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The lowest and highest of what else it measures now, by name."""
    cells: tuple[str, ...] = ()
    """The first digits of the keys of cells it is done for."""
    end: End = ""
    """How it ended, where this is the last that is heard of it."""

    @property
    def share(self) -> float:
        """What is done of it, from 0 to 1."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0

    @staticmethod
    def of(data: Any) -> WorkProgress:
        """What `dataclasses.asdict` made of one, after a way as JSON. Raises ValueError or TypeError for anything else."""
        made = WorkProgress(**data)
        counts = (made.done, made.total, made.before, made.seconds)
        unknown = (made.rate, made.left)
        numbers = {str(name): (_finite(low), _finite(high)) for name, (low, high) in dict(made.numbers).items()}
        if made.end not in ("", "done", "stopped"):
            raise ValueError(f"work does not end {made.end!r}")
        if not all(isinstance(text, str) for text in (made.work, made.what, made.unit, made.rate_unit, *made.cells)):
            raise TypeError("names are texts")
        done, total, before, seconds = map(_finite, counts)
        rate, left = (None if value is None else _finite(value) for value in unknown)
        own = (made.work, made.what, done, total, made.unit, before, seconds, rate, made.rate_unit, left)
        return WorkProgress(*own, numbers, tuple(made.cells), made.end)


def pass_on(message: WorkProgress, progress: Progress) -> None:
    """Tells in this process what another one told of the same work."""
    told: dict[str, Any] = {**message.numbers, "before": message.before}
    progress(message.done, message.total, message.unit, **told)


_LARGEST = 1e300


def _finite(value: Any) -> float:
    """Raises ValueError for anything but a finite number."""
    # Compared and not converted: JSON may hold integers that no float can be.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{value!r} is no number")
    return float(value)
