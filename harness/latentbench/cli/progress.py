"""What `plan`, `run` and `status --watch` show: live progress on a terminal, plain lines elsewhere.

`run` is fed with the events of its workers. `status --watch` sees a batch from outside: it is refreshed in place on a
terminal, elsewhere it gives a line per change.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from time import sleep, strftime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from latentbench.cli.options import print_json, say, table_width
from latentbench.core.errors import InvalidInput
from latentbench.core.text import one_line, plural
from latentbench.distributed.worker_process import Event
from latentbench.execute.batch_status import BatchState, BatchWatch, Estimate, estimate, statuses, until_done
from latentbench.plan.hidden_states import states_preview
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.spec.project import Project
from latentbench.store.store import Store
from latentbench.study.study import Study

_SECONDS_BETWEEN_LINES = 10.0


def print_plan(plan: Plan, project: Project, left: Estimate | None) -> None:
    """The cells and stages of a plan with what happens to each and why, and what that will take."""
    for item in plan.cells:
        _plan_line("run" if item.run else "reuse", item.run, "", item.cell.title, item.reason)
    print()
    stages = plan.stages()
    for step in stages:
        what = f"{step.stage.kind:<12} {step.stage.key[:12]}  "
        _plan_line("make" if step.run else "keep", step.run, what, step.stage.title, step.reason)
    made = sum(step.run for step in stages)
    print(f"\n{_counts(plan)}; {plural(made, 'stage')} to make, {len(stages) - made} kept")
    for text in (*previews(plan, project), *states_preview(plan, Store(project.store), project.roots)):
        print(one_line(text))
    if left:
        print(left)


def previews(plan: Plan, project: Project) -> list[str]:
    """What the studies to run will cost beyond compute, each said once with the number of cells it holds for."""
    told = Counter(
        f"{metric.metric}: {text}"
        for item in plan.to_run
        for metric in item.cell.experiment.metrics
        if isinstance(metric, Study) and (text := metric.preview(item.cell.experiment, project.roots))
    )
    return [f"{text} (in each of {count} cells)" if count > 1 else text for text, count in told.items()]


def _plan_line(mark: str, run: bool, what: str, title: str, reason: str) -> None:
    """One line, coloured on a terminal; by hand, because a plan has hundreds and rich takes half a second for them."""
    title, reason = one_line(title), one_line(reason)
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        mark, reason = f"\x1b[{33 if run else 32}m{mark:<5}\x1b[0m", f"\x1b[2m{reason}\x1b[0m"
    print(f"{mark:<5} {what}{title}  {reason}")


def print_summary(plan: Plan, unfinished: dict[str, str], project: Project, seconds: float) -> None:
    """How a run went: the table of its specs, every cell without numbers, and what to do next."""
    from latentbench.leaderboard.api import leaderboard

    console = Console(stderr=True)
    shared = os.path.commonpath([item.cell.origin.name for item in plan.cells]) if plan.cells else ""
    with suppress(InvalidInput):  # on a full disk there may be no record at all
        table = leaderboard(project.results, suite=shared or None, width=table_width())
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


class ProgressDisplay:
    """Progress of a run, fed with events."""

    def __init__(self, plan: Plan, left: Estimate | None = None, quiet: bool = False) -> None:
        """`left`: how long the cells to run will take, if that can be guessed."""
        self.plan, self.left, self.quiet = plan, left, quiet
        self.console = Console(stderr=True, quiet=quiet)
        self.live = self.console.is_terminal and not quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.live)
        self.tasks: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.console.print(_counts(self.plan), highlight=False)
        if self.left:
            self.console.print(str(self.left), highlight=False, soft_wrap=True)
        self.progress.start()
        if self.plan.to_run:
            self.cells = self.progress.add_task("cells", total=len(self.plan.to_run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def report(self, event: Event) -> None:
        """Shows an event of a worker."""
        if event.kind == "progress":
            self._advance(event)
        elif event.kind == "done":
            self._say(
                f"{'[green]ok[/]    ' if event.status == 'ok' else f'[red]{event.status}[/]'} {escape(event.text)}"
            )
            self.progress.advance(self.cells)
        else:
            self._say(f"[yellow]note[/]   {escape(event.text)}")

    def _advance(self, event: Event) -> None:
        if self.live:
            if event.text not in self.tasks:
                self.tasks[event.text] = self.progress.add_task(escape(event.text), total=event.total)
            self.progress.update(self.tasks[event.text], completed=event.done, visible=event.done < event.total)
        elif event.done == event.total or time.monotonic() - self.said.get(event.text, 0) > _SECONDS_BETWEEN_LINES:
            self.said[event.text] = time.monotonic()
            self._say(f"{escape(event.text)}: {event.done}/{event.total}")

    def _say(self, text: str) -> None:
        (self.progress.console if self.live else self.console).print(text, highlight=False, soft_wrap=True)


def escape(text: str) -> str:
    """Text that may hold anything, as one line of rich's markup."""
    return escape_markup(one_line(text))


def _counts(plan: Plan) -> str:
    running: tuple[PlannedCell, ...] = plan.to_run
    return f"{plural(len(plan.cells), 'cell')}: {len(running)} to run, {len(plan.cells) - len(running)} re-used"


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
        until_done(watch, lambda state: live.update(Text(_page(state, project)), refresh=True), pause)


class _Changes:
    """Says how things stand whenever the counts have changed."""

    def __init__(self, project: Project) -> None:
        self.project, self.said = project, ""

    def __call__(self, state: BatchState) -> None:
        counts = _batch_counts(state)
        if counts != self.said:
            self.said = counts
            say(f"{strftime('%H:%M:%S')} {counts}; {_left(state, self.project)}")


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


def _page(state: BatchState, project: Project) -> str:
    work = [f"at work  {title}  {holder}" for title, holder in state.at_work.items()]
    ended = []
    for title, record in state.without_numbers.items():
        log = f"  log: {project.results.name}/{record.error.log}" if record.error and record.error.log else ""
        ended.append(f"{record.status:<8} {title}  {record.error.message if record.error else ''}{log}")
    lines = [_batch_counts(state), _left(state, project), *_some(work), *_some(ended)]
    return "\n".join(map(one_line, lines))


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _ROWS
    return [*lines[:_ROWS], f"         … and {more} more"] if more > 0 else lines
