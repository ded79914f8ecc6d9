"""Verbs that read results: leaderboard, compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import Results, project_of, say


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    for verb in (leaderboard, compare):
        app.command()(verb)


def leaderboard(
    results: Results = None,
    format: Annotated[
        Literal["terminal", "md", "json", "csv", "html"], typer.Option(help="What to write.")
    ] = "terminal",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Only specs whose name starts with this.")] = None,
) -> None:
    """Show the table of all records; rows are ranked together only when they can be compared.

    Examples: `latentbench leaderboard`, `latentbench leaderboard --format html --output leaderboard.html`
    """
    from harness.leaderboard import leaderboard as render

    _emit(render(project_of(results).results, format=format, suite=suite), output)


def compare(
    a: Annotated[str, typer.Argument(help="A record: cell id, file, or spec-name[label][seed].")],
    b: Annotated[str, typer.Argument(help="Another record.")],
    results: Results = None,
    format: Annotated[Literal["terminal", "md", "json"], typer.Option(help="What to write.")] = "terminal",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Compare two records: what differs in their specs, and in every number, with intervals and p-values.

    Example: `latentbench compare 'quickstart/topk[sae.k=8]' 'quickstart/topk[sae.k=32]'`
    """
    from harness.leaderboard import compare_records

    _emit(compare_records(project_of(results).results, a, b, format), output)


def _emit(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from harness.store.files import write_bytes

    write_bytes(output, text.encode())
    say(f"wrote {output}", err=True)
