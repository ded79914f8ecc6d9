"""`status --watch`: a batch seen from outside, refreshed in place on a terminal, a line per change elsewhere."""

from __future__ import annotations

from functools import partial
from time import sleep, strftime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from latentbench.cli.options import say
from latentbench.execute.estimate import estimate
from latentbench.execute.watching import State, Watch, statuses, until_done
from latentbench.plan.plan import Plan
from latentbench.project import Project
from latentbench.store.store import Store
from latentbench.words import one_line

_ROWS = 12
"""Cells at work and cells without numbers that are shown by name, of each."""


def follow(plan: Plan, project: Project, seconds: float) -> None:
    """Shows how far the cells of a plan have come every few `seconds`, until all have numbers or Ctrl-C."""
    watch = Watch(plan, Store(project.store), project.results)
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

    def __call__(self, state: State) -> None:
        counts = _counts(state)
        if counts != self.said:
            self.said = counts
            say(f"{strftime('%H:%M:%S')} {counts}; {_left(state, self.project)}")


def _counts(state: State) -> str:
    ended = "".join(f", {count} {status}" for status, count in statuses(state).items())
    return (
        f"{state.done} of {state.done + len(state.left.cells)} cells done{ended}, "
        f"{len(state.at_work)} at work, {state.waiting} waiting"
    )


def _left(state: State, project: Project) -> str:
    """The time left, on as many workers as are seen working."""
    guess = estimate(state.left, project.results, max(1, len(set(state.at_work.values()))))
    return str(guess) if guess else "nothing is left"


def _page(state: State, project: Project) -> str:
    work = [f"at work  {title}  {holder}" for title, holder in state.at_work.items()]
    ended = []
    for title, record in state.without_numbers.items():
        log = f"  log: {project.results.name}/{record.error.log}" if record.error and record.error.log else ""
        ended.append(f"{record.status:<8} {title}  {record.error.message if record.error else ''}{log}")
    lines = [_counts(state), _left(state, project), *_some(work), *_some(ended)]
    return "\n".join(map(one_line, lines))


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _ROWS
    return [*lines[:_ROWS], f"         … and {more} more"] if more > 0 else lines
