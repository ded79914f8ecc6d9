"""Verbs that plan and run: plan, run, retry, status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from latentbench.cli.options import (
    AsJson,
    CellOptions,
    FolderOptions,
    MaxCells,
    PlacementOptions,
    RunFolderOptions,
    print_json,
    say,
    with_option_groups,
)
from latentbench.core.errors import LatentbenchError
from latentbench.core.spec_model import Json
from latentbench.core.text import plural

if TYPE_CHECKING:
    from latentbench.execute.run import CellSelection
    from latentbench.plan.plan import Plan
    from latentbench.records.record import Status
    from latentbench.spec.project import Project

INCOMPLETE = 3


@with_option_groups
def plan(cells: CellOptions, where: PlacementOptions, folders: FolderOptions, as_json: AsJson = False) -> None:
    """Say what a run would do, and why: every cell and stage, re-used or made. Nothing is run.

    With `--executor ray` it also refuses cells that no node of the cluster can ever run.

    Examples: `latentbench plan quickstart`, `latentbench plan --executor ray --address 10.0.0.1:6379`
    """
    project = folders.project()
    made, placement = _plan(cells, project), where.placement()
    placement.check(made, project)
    if as_json:
        print_json(_as_json(made))
        return
    from latentbench.cli.plan_lines import print_plan
    from latentbench.execute.batch_status import estimate

    print_plan(made, project, estimate(made, project.results, placement.slots(made)))


@with_option_groups
def run(
    cells: CellOptions,
    *,
    max_cells: MaxCells = None,
    where: PlacementOptions,
    folders: RunFolderOptions,
    as_json: AsJson = False,
) -> None:
    """Compute what is missing, write one record per cell, a page per steered cell, and refresh the leaderboard.

    Examples: `latentbench run quickstart`, `latentbench run 'specs/**/*.yaml' --filter 'k=8]' --shard 1/4`,
    `latentbench run --executor ray --address 10.0.0.1:6379`
    """
    _run(cells, cells.selection(max_cells), where, folders, as_json)


@with_option_groups
def retry(
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only cells that failed.")] = False,
    timed_out: Annotated[bool, typer.Option("--timed-out", help="Only cells that were stopped for time.")] = False,
    cells: CellOptions,
    max_cells: MaxCells = None,
    where: PlacementOptions,
    folders: RunFolderOptions,
    as_json: AsJson = False,
) -> None:
    """Run only the cells whose last run ended without numbers; by default all of them.

    Examples: `latentbench retry`, `latentbench retry quickstart --failed`
    """
    last: tuple[tuple[Status, bool], ...] = (("failed", failed), ("timeout", timed_out))
    # Neither option means the same as both.
    wanted = frozenset(status for status, asked in last if asked or failed == timed_out)
    _run(cells, cells.selection(max_cells, wanted), where, folders, as_json)


@with_option_groups
def status(
    cells: CellOptions,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until every cell is done, or Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    folders: FolderOptions,
    as_json: AsJson = False,
) -> None:
    """Show which cells are done, failed or missing. Exit code 3 when some are not done.

    It reads records and store, so it also follows runs of other machines that share these folders.

    Examples: `latentbench status quickstart`, `latentbench status --watch --interval 30`
    """
    project = folders.project()
    made = _plan(cells, project)
    if watch:
        from latentbench.cli.progress import follow

        follow(made, project, interval)
        return
    rows = [{"cell": c.cell.title, "done": not c.run, "reason": c.reason} for c in made.cells]
    rows += [{"cell": title, "done": False, "reason": reason} for title, reason in made.unpinned.items()]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            say(f"{'done' if row['done'] else 'open'}  {row['cell']}  {'' if row['done'] else row['reason']}".rstrip())
        open_cells = sum(not row["done"] for row in rows)
        say(f"{plural(len(rows) - open_cells, 'cell')} done, {open_cells} to run")
    raise typer.Exit(INCOMPLETE if made.to_run or made.unpinned else 0)


def _run(
    cells: CellOptions, choice: CellSelection, where: PlacementOptions, folders: RunFolderOptions, as_json: bool
) -> None:
    """Computes what is missing of the chosen cells, tells how that went, and ends with the exit code."""
    from latentbench.cli.progress import ProgressDisplay, print_json_summary, print_summary
    from latentbench.execute.batch_status import estimate
    from latentbench.execute.run import prepare, unfinished
    from latentbench.leaderboard.api import write_leaderboard_md
    from latentbench.store.cleaning import limit

    limit(folders.quota)
    project, placement, started = folders.project(), where.placement(), time.monotonic()
    meant = choice.of(prepare(project, cells.given), project.results)
    made = choice.first(meant)
    with ProgressDisplay(made, estimate(made, project.results, placement.slots(made)), quiet=as_json) as display:
        placement.run(made, project, display.report)
    left = unfinished(meant, project)
    code = INCOMPLETE if left else 0
    try:
        write_leaderboard_md(project.results, project.store)
    except LatentbenchError as error:  # on a full disk; what was computed is told all the same
        say(f"error: the table was not written: {error}", err=True)
        code = code or error.exit_code
    _write_pages(made, project)
    (print_json_summary if as_json else print_summary)(meant, left, project, time.monotonic() - started)
    raise typer.Exit(code)


def _write_pages(made: Plan, project: Project) -> None:
    """A page for every steered cell this run computed, once all are there for each to be compared with."""
    from latentbench.records.results import find_record

    steered = [item for item in made.to_run if item.cell.experiment.steering]
    records = [find_record(project.results, item.cell, item.key) for item in steered]
    finished = [record for record in records if record and record.status == "ok"]
    if not finished:
        return
    from latentbench.report.steering import write

    for record in finished:
        try:
            say(f"report: {write(record, project)}", err=True)
        except LatentbenchError as error:
            say(f"error: the report of {record.spec.name} [{record.label}] was not written: {error}", err=True)


def _plan(cells: CellOptions, project: Project) -> Plan:
    """The plan of the chosen cells as specs and store are now; unlike a run's, nothing from the hub is pinned."""
    from latentbench.core.known_files import kept_in
    from latentbench.plan.plan import make_plan
    from latentbench.spec.project import load_specs
    from latentbench.store.derived import Derived
    from latentbench.store.store import Store

    choice = cells.selection()
    with kept_in(Derived(project.store)):
        made = make_plan(load_specs(project, cells.given), Store(project.store), project.results, project.roots)
    return choice.of(made, project.results)


def _as_json(made: Plan) -> Json:
    cells = [
        {
            "cell": item.cell.title,
            "key": item.key,
            "action": "run" if item.run else "reuse",
            "reason": item.reason,
            "stages": [step.stage.key for step in item.steps],
        }
        for item in made.cells
    ]
    stages = [
        {
            "key": step.stage.key,
            "kind": step.stage.kind,
            "title": step.stage.title,
            "action": "run" if step.run else "reuse",
            "reason": step.reason,
            "parents": [parent.key for parent in step.stage.parents],
        }
        for step in made.stages()
    ]
    return {"cells": cells, "stages": stages, "unpinned": dict(made.unpinned)}
