"""Verbs that read results: leaderboard, compare, import, publish."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from latentbench.cli.options import (
    AsJson,
    CellArgument,
    Results,
    StoreOptions,
    print_json,
    say,
    table_width,
    with_option_groups,
)
from latentbench.core.errors import InvalidInput
from latentbench.core.text import plural
from latentbench.spec.project import Project, find_project

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File (or folder) to write; default: standard output.")
]
Suite = Annotated[str | None, typer.Option(help="Only this spec, or the specs in this folder, e.g. papers/kronsae.")]
Format = Literal["terminal", "md", "json", "csv", "html", "latex", "parquet", "every-eval-ever", "saebench"]


@with_option_groups
def leaderboard(
    folders: StoreOptions,
    format: Annotated[Format, typer.Option(help="What to write; the last two are folders of files.")] = "terminal",
    output: Output = None,
    suite: Suite = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="A metric, its family or a heading; repeatable; `all` for everything. HTML has all."
        ),
    ] = None,
) -> None:
    """Show the table of all records; rows are ranked together only when they can be compared.

    Examples: `latentbench leaderboard --suite papers/kronsae --column cost`,
    `latentbench leaderboard --format html --output leaderboard.html`
    """
    from latentbench.leaderboard.api import leaderboard as render

    project = folders.project()
    if format == "parquet" or format == "every-eval-ever" or format == "saebench":
        if output is None:
            raise InvalidInput(f"--format {format} needs --output")
        if columns and format != "parquet":
            raise InvalidInput(f"--format {format} has whole records, not columns; leave --column out")
        _write(project, format, output, suite, columns)
        return
    beside, width = output.parent if output else None, table_width()
    _emit(render(project.results, format, suite, columns, width, store=project.store, beside=beside), output)


def compare(
    a: CellArgument,
    b: Annotated[str, typer.Argument(help="Another record.")],
    results: Results = None,
    format: Annotated[Literal["terminal", "md", "json", "html"], typer.Option(help="What to write.")] = "terminal",
    output: Output = None,
) -> None:
    """Compare two records: what differs in their specs, and in every number, with intervals and p-values.

    Examples: `latentbench compare 'quickstart/topk[sae.k=8]' 'quickstart/topk[sae.k=32]'`,
    `latentbench compare A B --format html --output compare.html`
    """
    from latentbench.leaderboard.api import compare_records

    project = find_project(results)
    _emit(compare_records(project.results, a, b, format, table_width(), project.store), output)


def import_(
    files: Annotated[list[Path], typer.Argument(help="Result files of SAEBench, sae-lens (JSON, CSV) or lm-eval.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Take results of other tools into the leaderboard; they are shown as imported. All files are taken, or none.

    Example: `latentbench import eval_results/*.json`
    """
    from latentbench.exchange.importing import import_files

    made = import_files(find_project(results).results, files)
    if as_json:
        print_json([{"record": str(item.path), "new": item.new, "warnings": item.record.warnings} for item in made])
        return
    for item in made:
        record = item.record
        known = sum(metric.value is not None for metric in record.metrics)
        title = f"{record.spec.name}[{record.label}]"
        say(f"{'imported' if item.new else 'known   '}  {title}: {plural(known, 'number')}")
        for warning in record.warnings:
            say(f"          {warning}", err=True)


def publish(
    to: Annotated[Literal["trackio", "wandb"], typer.Option(help="An installed experiment tracker.")],
    project: Annotated[str, typer.Option(help="Its project.")] = "latentbench",
    results: Results = None,
    suite: Suite = None,
) -> None:
    """Log the numbers of all records to an experiment tracker, one run per record.

    Example: `latentbench publish --to trackio`
    """
    from latentbench.exchange.exporting import publish as log
    from latentbench.leaderboard.load import load

    done = log(load(find_project(results).results), to, project, suite)
    say(f"logged {plural(done, 'record')} to {to}, project {project}")


def _write(
    project: Project,
    format: Literal["parquet", "every-eval-ever", "saebench"],
    output: Path,
    suite: str | None,
    columns: list[str] | None,
) -> None:
    from latentbench.exchange.exporting import write_folder
    from latentbench.leaderboard.api import leaderboard_parquet
    from latentbench.leaderboard.load import load
    from latentbench.store.files import write_bytes

    if format == "parquet":
        write_bytes(output, leaderboard_parquet(project.results, suite, columns))
        say(f"wrote {output}", err=True)
        return
    say(f"wrote {plural(write_folder(load(project.results), format, output, suite), 'file')} to {output}", err=True)


def _emit(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from latentbench.store.files import write_bytes

    write_bytes(output, text.encode())
    say(f"wrote {output}", err=True)
