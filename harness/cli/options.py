"""Options that several verbs share, and small helpers for printing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.project import Project, find_project
from harness.section import Json
from harness.words import printable

Specs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Spec files, folders, globs or names below specs/; all specs when none is given.", show_default=False
    ),
]
Results = Annotated[Path | None, typer.Option("--results", help="Folder of results.", show_default="results/")]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of trained and measured artifacts.", show_default="results/store/"),
]
Allow = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow", help="A folder outside the project that specs may read; repeatable. Also LATENTBENCH_ALLOW."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def project_of(results: Path | None = None, store: Path | None = None, allow: list[Path] | None = None) -> Project:
    """The project around the current folder with the options given."""
    return find_project(results, store, allow or ())


def say(text: str, err: bool = False) -> None:
    """Prints text that may hold anything."""
    typer.echo(printable(text), err=err)


def print_json(value: Json) -> None:
    """JSON on standard output."""
    say(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
