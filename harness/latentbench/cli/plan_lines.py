"""What `plan` shows: plain lines, for which nothing that draws is imported."""

from __future__ import annotations

import os
import sys
from collections import Counter

from latentbench.core.text import one_line, plural
from latentbench.execute.batch_status import Estimate
from latentbench.plan.hidden_states import states_preview
from latentbench.plan.plan import Plan, PlannedCell
from latentbench.spec.project import Project
from latentbench.store.store import Store
from latentbench.study.study import Study


def print_plan(plan: Plan, project: Project, left: Estimate | None) -> None:
    """The cells and stages of a plan with what happens to each and why, and what that will take."""
    for item in plan.cells:
        _plan_line("run" if item.run else "reuse", item.run, "", item.cell.title, item.reason)
    for title, reason in plan.unpinned.items():
        _plan_line("lack", True, "", title, reason)
    print()
    stages = plan.stages()
    for step in stages:
        what = f"{step.stage.kind:<12} {step.stage.key[:12]}  "
        _plan_line("make" if step.run else "keep", step.run, what, step.stage.title, step.reason)
    made = sum(step.run for step in stages)
    print(f"\n{counts(plan)}; {plural(made, 'stage')} to make, {len(stages) - made} kept")
    for reason, count in Counter(plan.unpinned.values()).items():
        print(one_line(f"{plural(count, 'cell')} cannot be planned: {reason}"))
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


def counts(plan: Plan) -> str:
    """How many cells a plan has, to run and re-used."""
    running: tuple[PlannedCell, ...] = plan.to_run
    return f"{plural(len(plan.cells), 'cell')}: {len(running)} to run, {len(plan.cells) - len(running)} re-used"
