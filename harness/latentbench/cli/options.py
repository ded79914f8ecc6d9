"""Options that several verbs share, and small helpers for printing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from latentbench.core.spec_model import Json
from latentbench.core.text import printable
from latentbench.spec.project import Project, find_project

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
Quota = Annotated[
    str | None,
    typer.Option(
        envvar="LATENTBENCH_QUOTA",
        help="Size the store is kept to, e.g. 50GiB: what was not used for longest and can be rebuilt is deleted.",
        show_default=False,
    ),
]
Allow = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow", help="A folder outside the project that specs may read; repeatable. Also LATENTBENCH_ALLOW."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Executor = Annotated[
    Literal["local", "inline", "ray"],
    typer.Option(help="local: a process per group of cells; inline: this process; ray: a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a Ray cluster this machine belongs to; default: one is started here."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes at a time; default: as many as the threads allow.", show_default=False),
]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda or cuda:N. With ray, auto is a GPU for cells whose `resources` ask for one."),
]
Filter = Annotated[
    str | None,
    typer.Option("--filter", help="Only cells whose title has this in it; * is any text, ? any character."),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", help="I/N: the I-th of N parts of the cells, chosen by their keys alone."),
]
MaxCells = Annotated[int | None, typer.Option("--max-cells", min=1, help="Run at most so many cells, the first ones.")]


def project_of(results: Path | None = None, store: Path | None = None, allow: list[Path] | None = None) -> Project:
    """The project around the current folder with the options given."""
    return find_project(results, store, allow or ())


def say(text: str, err: bool = False) -> None:
    """Prints text that may hold anything."""
    typer.echo(printable(text), err=err)


def print_json(value: Json) -> None:
    """JSON on standard output."""
    say(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def table_width() -> int:
    """Characters that a table may take: the terminal's, and the same everywhere in a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
