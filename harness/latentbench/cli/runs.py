"""Verbs that plan and run: plan, run, retry, status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from latentbench.cli.options import (
    Address,
    Allow,
    AsJson,
    Device,
    Executor,
    Filter,
    MaxCells,
    Quota,
    Results,
    ShardOption,
    Specs,
    StoreFolder,
    Workers,
    print_json,
    project_of,
    say,
)
from latentbench.core.errors import LatentbenchError
from latentbench.core.spec_model import Json
from latentbench.core.text import plural

if TYPE_CHECKING:
    from latentbench.execute.placement import Placement
    from latentbench.execute.run import CellSelection
    from latentbench.plan.plan import Plan
    from latentbench.records.record import Status
    from latentbench.spec.project import Project

INCOMPLETE = 3


def plan(
    specs: Specs = None,
    filter: Filter = None,
    shard: ShardOption = None,
    executor: Executor = "local",
    address: Address = None,
    workers: Workers = None,
    device: Device = "auto",
    results: Results = None,
    store: StoreFolder = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do, and why: every cell and stage, re-used or made. Nothing is run.

    With `--executor ray` it also refuses cells that no node of the cluster can ever run.

    Examples: `latentbench plan quickstart`, `latentbench plan --executor ray --address 10.0.0.1:6379`
    """
    from latentbench.execute.placement import Placement

    project = project_of(results, store, allow)
    made = _plan(specs, project, _choice(filter, shard))
    placement = Placement(executor, address, workers, device)
    placement.check(made, project)
    if as_json:
        print_json(_as_json(made))
        return
    from latentbench.cli.progress import print_plan
    from latentbench.execute.batch_status import estimate

    print_plan(made, project, estimate(made, project.results, placement.slots(made)))


def run(
    specs: Specs = None,
    filter: Filter = None,
    shard: ShardOption = None,
    max_cells: MaxCells = None,
    executor: Executor = "local",
    address: Address = None,
    workers: Workers = None,
    device: Device = "auto",
    results: Results = None,
    store: StoreFolder = None,
    quota: Quota = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Compute what is missing, write one record per cell, a page per steered cell, and refresh the leaderboard.

    Examples: `latentbench run quickstart`, `latentbench run 'specs/**/*.yaml' --filter 'k=8]' --shard 1/4`,
    `latentbench run --executor ray --address 10.0.0.1:6379`
    """
    from latentbench.execute.placement import Placement
    from latentbench.store.cleaning import limit

    limit(quota)
    project = project_of(results, store, allow)
    _run(specs, project, _choice(filter, shard, max_cells), Placement(executor, address, workers, device), as_json)


def retry(
    specs: Specs = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only cells that failed.")] = False,
    timed_out: Annotated[bool, typer.Option("--timed-out", help="Only cells that were stopped for time.")] = False,
    filter: Filter = None,
    shard: ShardOption = None,
    max_cells: MaxCells = None,
    executor: Executor = "local",
    address: Address = None,
    workers: Workers = None,
    device: Device = "auto",
    results: Results = None,
    store: StoreFolder = None,
    quota: Quota = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Run only the cells whose last run ended without numbers; by default all of them.

    Examples: `latentbench retry`, `latentbench retry quickstart --failed`
    """
    from latentbench.execute.placement import Placement
    from latentbench.store.cleaning import limit

    limit(quota)
    project = project_of(results, store, allow)
    last: tuple[tuple[Status, bool], ...] = (("failed", failed), ("timeout", timed_out))
    wanted = frozenset(status for status, asked in last if asked or failed == timed_out)
    choice = _choice(filter, shard, max_cells, wanted)
    _run(specs, project, choice, Placement(executor, address, workers, device), as_json)


def status(
    specs: Specs = None,
    filter: Filter = None,
    shard: ShardOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until every cell is done, or Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    results: Results = None,
    store: StoreFolder = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Show which cells are done, failed or missing. Exit code 3 when some are not done.

    It reads records and store, so it also follows runs of other machines that share these folders.

    Examples: `latentbench status quickstart`, `latentbench status --watch --interval 30`
    """
    project = project_of(results, store, allow)
    made = _plan(specs, project, _choice(filter, shard))
    if watch:
        from latentbench.cli.progress import follow

        follow(made, project, interval)
        return
    rows = [{"cell": c.cell.title, "done": not c.run, "reason": c.reason} for c in made.cells]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            say(f"{'done' if row['done'] else 'open'}  {row['cell']}  {'' if row['done'] else row['reason']}".rstrip())
        say(f"{plural(len(rows) - len(made.to_run), 'cell')} done, {len(made.to_run)} to run")
    raise typer.Exit(INCOMPLETE if made.to_run else 0)


def _run(specs: Specs, project: Project, choice: CellSelection, placement: Placement, as_json: bool) -> None:
    from latentbench.cli.progress import ProgressDisplay, print_json_summary, print_summary
    from latentbench.execute.batch_status import estimate
    from latentbench.execute.run import compute, prepare, unfinished
    from latentbench.leaderboard.api import write_leaderboard_md

    started = time.monotonic()
    meant = choice.of(prepare(project, specs or []), project.results)
    made = choice.first(meant)
    with ProgressDisplay(made, estimate(made, project.results, placement.slots(made)), quiet=as_json) as display:
        compute(made, project, placement, display.report)
    left = unfinished(meant, project)
    code = INCOMPLETE if left else 0
    try:
        write_leaderboard_md(project.results)
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


def _choice(
    pattern: str | None, shard: str | None, max_cells: int | None = None, last: frozenset[Status] = frozenset()
) -> CellSelection:
    from latentbench.execute.run import CellSelection, Shard

    return CellSelection(pattern, Shard.parse(shard) if shard is not None else None, last, max_cells)


def _plan(specs: Specs, project: Project, choice: CellSelection) -> Plan:
    from latentbench.plan.plan import make_plan
    from latentbench.spec.project import load_specs
    from latentbench.store.store import Store

    made = make_plan(load_specs(project, specs or []), Store(project.store), project.results, project.roots)
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
    return {"cells": cells, "stages": stages}
