"""Verbs that plan and run: plan, run, status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.options import Allow, AsJson, Results, Specs, StoreFolder, print_json, project_of, say
from harness.section import Json
from harness.words import plural

if TYPE_CHECKING:
    from harness.plan.plan import Plan


INCOMPLETE = 3


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    for verb in (plan, run, status):
        app.command()(verb)


def plan(
    specs: Specs = None,
    results: Results = None,
    store: StoreFolder = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do, and why: every cell and stage, re-used or made. Nothing is run.

    Example: `latentbench plan quickstart`
    """
    made = _plan(specs, results, store, allow)
    if as_json:
        print_json(_as_json(made))
        return
    from harness.cli.display import print_plan

    print_plan(made)


def run(
    specs: Specs = None,
    executor: Annotated[
        Literal["local", "inline"], typer.Option(help="local: a process per group of cells; inline: this process.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes at a time; default: as many as the threads allow.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    results: Results = None,
    store: StoreFolder = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Compute what is missing, write one record per cell, and refresh the leaderboard.

    Examples: `latentbench run quickstart`, `latentbench run specs/mine/*.yaml --workers 2`
    """
    from harness.cli.display import Display, print_json_summary, print_summary
    from harness.execute.run import compute, prepare, unfinished
    from harness.leaderboard import write_leaderboard_md

    started, project = time.monotonic(), project_of(results, store, allow)
    made = prepare(project, specs or [])
    with Display(made, quiet=as_json) as display:
        compute(made, project, executor, workers, device, display.report)
    left = unfinished(made, project)
    write_leaderboard_md(project.results)
    (print_json_summary if as_json else print_summary)(made, left, project, time.monotonic() - started)
    raise typer.Exit(INCOMPLETE if left else 0)


def status(
    specs: Specs = None,
    results: Results = None,
    store: StoreFolder = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Show which cells are done, failed or missing. Exit code 3 when some are not done.

    Example: `latentbench status quickstart`
    """
    made = _plan(specs, results, store, allow)
    rows = [{"cell": c.cell.title, "done": not c.run, "reason": c.reason} for c in made.cells]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            say(f"{'done' if row['done'] else 'open'}  {row['cell']}  {'' if row['done'] else row['reason']}".rstrip())
        say(f"{plural(len(rows) - len(made.to_run), 'cell')} done, {len(made.to_run)} to run")
    raise typer.Exit(INCOMPLETE if made.to_run else 0)


def _plan(specs: Specs, results: Results, store: StoreFolder, allow: Allow) -> Plan:
    from harness.plan.plan import make_plan
    from harness.project import load_specs
    from harness.store.store import Store

    project = project_of(results, store, allow)
    return make_plan(load_specs(project, specs or []), Store(project.store), project.results, project.roots)


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
