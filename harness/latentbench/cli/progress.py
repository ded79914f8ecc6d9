"""What `run` and `status --watch` show: live progress on a terminal, plain lines elsewhere.

`run` is fed with the events of its workers. `status --watch` sees a batch from outside: it is refreshed in place on a
terminal, elsewhere it gives a line per change.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import sleep, strftime
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape as escape_markup
from rich.text import Text

from latentbench.cli.options import print_json, say, table_width
from latentbench.cli.plan_lines import counts
from latentbench.cli.work_lines import WorkLines, rows, set_to
from latentbench.core.errors import InvalidInput
from latentbench.core.progress import WorkProgress
from latentbench.core.text import one_line, plural
from latentbench.distributed.worker_process import Event
from latentbench.execute.batch_status import BatchState, BatchWatch, Estimate, estimate, statuses, until_done
from latentbench.plan.plan import Plan
from latentbench.spec.project import Project
from latentbench.store.store import Store

_SECONDS_BETWEEN_DRAWINGS = 0.2


def print_summary(plan: Plan, unfinished: dict[str, str], project: Project, seconds: float) -> None:
    """How a run went: the table of its specs, every cell without numbers, and what to do next."""
    from latentbench.leaderboard.api import leaderboard

    console = Console(stderr=True)
    shared = os.path.commonpath([item.cell.origin.name for item in plan.cells]) if plan.cells else ""
    with suppress(InvalidInput):  # on a full disk there may be no record at all
        table = leaderboard(project.results, suite=shared or None, width=table_width(), store=project.store)
        sys.stdout.write(table + "\n")
    for title, reason in unfinished.items():
        console.print(f"[red]no numbers[/] {escape(title)}: {escape(reason)}", highlight=False, soft_wrap=True)
    meant = len(plan.cells) + len(plan.unpinned)
    console.print(
        f"{meant - len(unfinished)} of {plural(meant, 'cell')} complete in {seconds:.1f} s; table: {project.results.name}/LEADERBOARD.md"
    )
    if unfinished:
        console.print("next: latentbench status, or latentbench retry for what failed", highlight=False)


def print_json_summary(plan: Plan, unfinished: dict[str, str], project: Project, seconds: float) -> None:
    """The same as JSON."""
    cells = [
        {"cell": c.cell.title, "key": c.key, "complete": c.cell.title not in unfinished, "reused": not c.run}
        for c in plan.cells
    ]
    print_json({"cells": cells, "unfinished": unfinished, "seconds": round(seconds, 1)})


class _ErrorConsole(Console):
    """A console on standard error. Where nobody reads that any more, rich would silence standard output and exit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads standard error")


class ProgressDisplay:
    """Progress of a run, fed with events: a bar per piece of work on a terminal, a line in 30 seconds elsewhere.

    It writes on a thread of its own: a reader that is slow, stopped or gone holds up nothing that is computed.
    """

    def __init__(self, plan: Plan, left: Estimate | None = None, quiet: bool = False) -> None:
        """`left`: how long the cells to run will take, if that can be guessed."""
        self.plan, self.left = plan, left
        self.console = _ErrorConsole(stderr=True, quiet=quiet)
        self.live = self.console.is_terminal and not quiet
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._unread = quiet
        """Whether nobody reads."""
        self._work: dict[str, WorkProgress] = {}
        self._lines = WorkLines(lambda text: self._say(escape(text)), time.monotonic)
        self._done, self._began = 0, time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.put(None)
        self._ended.set()
        self._thread.join()

    def report(self, event: Event) -> None:
        """Has an event of a worker shown, without waiting for it."""
        if not self._unread:
            self._events.put(event)

    def _run(self) -> None:
        try:
            self._say(counts(self.plan))
            if self.left:
                self._say(str(self.left))
            if self.live:
                with Live(console=self.console, auto_refresh=False, transient=True) as live:
                    self._follow(lambda: live.update(Group(*self._page()), refresh=True))
            else:
                self._follow(lambda: None)
        except (OSError, ValueError):  # the reader is gone, or what it read from was closed
            self._unread = True

    def _follow(self, draw: Callable[[], None]) -> None:
        """Takes in events until the end, and draws after each lot, at least every second."""
        going = True
        while going:
            for event in self._lot():
                if event is None:
                    going = False
                else:
                    self._take(event)
            draw()
            self._ended.wait(_SECONDS_BETWEEN_DRAWINGS)

    def _lot(self) -> Iterator[Event | None]:
        """All events there are, after up to a second of waiting for one."""
        with suppress(Empty):
            yield self._events.get(timeout=1.0)
            while True:
                yield self._events.get_nowait()

    def _take(self, event: Event) -> None:
        if event.kind == "done":
            mark = "[green]ok[/]    " if event.status == "ok" else f"[red]{event.status}[/]"
            self._say(f"{mark} {escape(event.text)}")
            self._done += 1
        elif event.progress is None:
            self._say(f"[yellow]note[/]   {escape(event.text)}")
        elif not self.live:
            self._lines.take(event.progress)
        elif event.progress.end:
            self._work.pop(event.progress.work, None)
        else:
            self._work[event.progress.work] = event.progress

    def _page(self) -> list[Text]:
        """The bars of what is at work, and how many cells are done."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        cells = f"{self._done} of {plural(len(self.plan.to_run), 'cell')} done, {minutes}:{seconds:02}"
        width = self.console.width
        bars = rows(list(self._work.values()), width, self.console.encoding.startswith("utf"))
        return [*bars, Text(set_to(cells, width).rstrip(), style="dim")]

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def escape(text: str) -> str:
    """Text that may hold anything, as one line of rich's markup."""
    return escape_markup(one_line(text))


_ROWS = 12
"""Cells at work and cells without numbers that are shown by name, of each."""


def follow(plan: Plan, project: Project, seconds: float) -> None:
    """Shows how far the cells of a plan have come every few `seconds`, until all have numbers or Ctrl-C."""
    watch = BatchWatch(plan, Store(project.store), project.results)
    console, pause = Console(), partial(sleep, seconds)
    if not console.is_terminal:
        until_done(watch, _Changes(project), pause)
        return
    with Live(console=console, auto_refresh=False) as live:
        until_done(watch, lambda state: live.update(_page(state, project, console), refresh=True), pause)


class _Changes:
    """Says how things stand whenever the counts have changed, and about the work at hand a line in 30 seconds."""

    def __init__(self, project: Project) -> None:
        self.project, self.said = project, ""
        self._lines = WorkLines(_say_with_time, time.monotonic, at_once=True)

    def __call__(self, state: BatchState) -> None:
        counts = _batch_counts(state)
        if counts != self.said:
            self.said = counts
            _say_with_time(f"{counts}; {_left(state, self.project)}")
        for work in state.work:
            self._lines.take(work)


def _say_with_time(text: str) -> None:
    say(f"{strftime('%H:%M:%S')} {text}")


def _batch_counts(state: BatchState) -> str:
    ended = "".join(f", {count} {status}" for status, count in statuses(state).items())
    return (
        f"{state.done} of {state.done + len(state.left.cells)} cells done{ended}, "
        f"{len(state.at_work)} at work, {state.waiting} waiting"
    )


def _left(state: BatchState, project: Project) -> str:
    """The time left, on as many workers as are seen working."""
    guess = estimate(state.left, project.results, max(1, len(set(state.at_work.values()))))
    return str(guess) if guess else "nothing is left"


def _page(state: BatchState, project: Project, console: Console) -> Group:
    work = [f"at work  {title}  {holder}" for title, holder in state.at_work.items()]
    ended = []
    for title, record in state.without_numbers.items():
        log = f"  log: {project.results.name}/{record.error.log}" if record.error and record.error.log else ""
        ended.append(f"{record.status:<8} {title}  {record.error.message if record.error else ''}{log}")
    lines = [_batch_counts(state), _left(state, project), *_some(work), *_some(ended)]
    bars = rows(state.work, console.width, console.encoding.startswith("utf"))
    return Group(Text("\n".join(map(one_line, lines))), *bars)


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _ROWS
    return [*lines[:_ROWS], f"         … and {more} more"] if more > 0 else lines
