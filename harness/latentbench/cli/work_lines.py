"""Work in progress as people read it: rows with bars for a terminal, one line for everything else.

Both are made of the same words, by `run` and by `status --watch`. Titles come from specs and may hold anything: what could
steer a terminal is made visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from latentbench.core.progress import WorkProgress
from latentbench.core.text import one_line
from latentbench.execute.batch_status import duration

SECONDS_BETWEEN_LINES = 30.0
"""Between two lines about one piece of work where there is no terminal."""
ROWS = 12
"""Pieces of work that a terminal shows at a time."""
_TITLE, _BAR, _GAP = 16, 8, "  "
"""Least cells of a title and of a bar."""
_WIDEST_BAR = 40


def plain(work: WorkProgress) -> str:
    """Everything that is known, as one line."""
    title = one_line(work.what)
    if work.end == "done":
        return ", ".join(filter(None, (f"{title}: done in {duration(work.seconds)}", _speed(work), _numbers(work))))
    if work.end:
        return f"{title}: stopped at {_share(work)} after {duration(work.seconds)}"
    count = f"{work.done:,.0f} of {work.total:,.0f} {one_line(work.unit)}"
    left = _left(work)
    parts = (f"{title}: {_share(work)} ({count})", _speed(work), _numbers(work), left and f"about {left}")
    return ", ".join(filter(None, parts))


def rows(works: Sequence[WorkProgress], width: int, utf8: bool = True) -> list[Text]:
    """A row with a bar for each of the first pieces of work, in aligned columns, none wider than `width` cells."""
    shown = works[:ROWS]
    if not shown:
        return []
    titles = [one_line(work.what) for work in shown]
    right = _columns(shown, width - _TITLE - len(_GAP))
    room = width - cell_len(right[0]) - len(_GAP)
    title = min(max(map(cell_len, titles)), max(room - _BAR - len(_GAP), min(room, _TITLE)))
    bar = min(room - title - len(_GAP), _WIDEST_BAR)
    made = [
        _row(set_to(text, title), _bar(work.share, bar, utf8) if bar >= _BAR else Text(), told)
        for work, text, told in zip(shown, titles, right, strict=True)
    ]
    for row in made:
        row.truncate(width)  # signs that join others take another room together than apart
    more = len(works) - len(shown)
    return [*made, Text(set_to(f"… and {more} more", width).rstrip(), style="dim")] if more else made


def set_to(text: str, cells: int) -> str:
    """The text in exactly so many cells of a terminal: filled up, or cut with a mark."""
    return (
        set_cell_size(text, cells) if cell_len(text) <= cells else set_cell_size(text, max(0, cells - 1)) + "…"[:cells]
    )


def _row(title: str, bar: Text, told: str) -> Text:
    row = Text(title, no_wrap=True)
    for part in (bar, Text(told)):
        if part.plain:
            row.append(_GAP).append_text(part)
    return row


def _columns(works: Sequence[WorkProgress], room: int) -> list[str]:
    """What stands behind the bars, all of one width: as much of it as there is room for, the share in any case."""
    columns = [[f"{_share(work):>5}" for work in works]]
    # By what is missed first; the bar comes before the speed.
    for tell, kept in ((_left, 0), (_speed, _BAR + len(_GAP)), (_numbers, _BAR + len(_GAP))):
        column = [tell(work) for work in works]
        widest = max(map(cell_len, column))
        taken = sum(cell_len(done[0]) + len(_GAP) for done in columns)
        if widest and taken + widest + kept <= room:
            columns.append([set_cell_size(text, widest) for text in column])
    # As they are read: how far and how fast it is and what it measures, at the right end what is left.
    share, *more = columns
    ordered = [share, *more[1:], *more[:1]]
    return [_GAP.join(parts) for parts in zip(*ordered, strict=True)]


def _bar(share: float, cells: int, utf8: bool) -> Text:
    full, rest = ("━", "━") if utf8 else ("#", "-")
    done = int(share * cells)
    return Text(full * done, style="cyan").append(rest * (cells - done), style="bright_black")


def _share(work: WorkProgress) -> str:
    """Rounded down: 100 % is what is done."""
    return f"{int(work.share * 100)} %"


def _left(work: WorkProgress) -> str:
    return "" if work.left is None else f"{duration(work.left)} left"


def _speed(work: WorkProgress) -> str:
    """In the unit of time in which it is a number people have a feeling for."""
    if not work.rate:
        return ""
    per, times = next(((per, s) for per, s in (("s", 1), ("min", 60)) if work.rate * s >= 1), ("h", 3600))
    rate = work.rate * times
    return (
        f"{rate:,.0f} {one_line(work.rate_unit)}/{per}"
        if rate >= 100
        else f"{rate:.3g} {one_line(work.rate_unit)}/{per}"
    )


def _numbers(work: WorkProgress) -> str:
    return _GAP.join(
        f"{one_line(name)} {low:.3g}" + (f"–{high:.3g}" if f"{high:.3g}" != f"{low:.3g}" else "")
        for name, (low, high) in work.numbers.items()
    )


@dataclass
class WorkLines:
    """Says a line about every piece of work every 30 seconds and at its end."""

    say: Callable[[str], None]
    clock: Callable[[], float]
    at_once: bool = False
    """Whether the first line comes at once, for those who have just begun to watch, or only after 30 seconds."""
    _said: dict[str, float] = field(default_factory=dict)
    """When, by piece of work."""

    def take(self, work: WorkProgress) -> None:
        """A message about a piece of work."""
        now = self.clock()
        first = now - SECONDS_BETWEEN_LINES if self.at_once else now
        if work.end:
            self._said.pop(work.work, None)
            self.say(plain(work))
        elif now - self._said.setdefault(work.work, first) >= SECONDS_BETWEEN_LINES:
            self._said[work.work] = now
            self.say(plain(work))
