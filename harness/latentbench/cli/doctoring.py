"""`latentbench doctor`: proof that this installation measures right."""

from __future__ import annotations

from typing import Annotated

import typer

from latentbench.cli.options import AsJson, Results, StoreFolder, print_json, project_of, say
from latentbench.words import one_line, plural

_MARKS = {"pass": "pass", "fail": "FAIL", "note": "    "}


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command()(doctor)


def doctor(
    results: Results = None,
    store: StoreFolder = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the surroundings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove the metrics on known truths and check the surroundings; at most a minute, exit code 1 if anything fails.

    Example: `latentbench doctor`
    """
    from dataclasses import asdict

    from latentbench.doctor.check import run_checks
    from latentbench.doctor.surroundings import surroundings_checks

    checks = surroundings_checks(project_of(results, store))
    if not quick:
        from latentbench.doctor.dictionary import dictionary_checks
        from latentbench.doctor.intervals import interval_checks
        from latentbench.doctor.truths import metric_checks

        checks += [*metric_checks(), *dictionary_checks(), *interval_checks()]
    done = []
    for result in run_checks(checks):
        done.append(result)
        if not as_json:
            say(f"{_MARKS[result.verdict]}  {result.name} ({result.seconds:.1f} s)\n      {one_line(result.detail)}")
    failed = sum(result.verdict == "fail" for result in done)
    if as_json:
        print_json({"passed": not failed, "checks": [asdict(result) for result in done]})
    else:
        say(f"{plural(len(done), 'check')} in {sum(r.seconds for r in done):.1f} s, {failed} failed")
    raise typer.Exit(1 if failed else 0)
