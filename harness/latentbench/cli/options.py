"""Options that several verbs share, alone and in groups, and small helpers for printing.

A group is a dataclass whose fields are options. A verb takes it as one parameter, and `with_option_groups` unfolds it
for Typer. Names of other packages are imported inside of methods: every start of the command line reads this module.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from latentbench.core.spec_model import Json
from latentbench.core.text import printable
from latentbench.spec.project import Project, find_project

if TYPE_CHECKING:
    from latentbench.execute.placement import Placement
    from latentbench.execute.run import CellSelection
    from latentbench.records.record import Status

Specs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Spec files, folders, globs or names below specs/; all specs when none is given.", show_default=False
    ),
]
CellArgument = Annotated[str, typer.Argument(help="A record: cell id, file, or spec-name[label][seed].")]
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
MaxCells = Annotated[int | None, typer.Option("--max-cells", min=1, help="Run at most so many cells, the first ones.")]


@dataclass(frozen=True)
class CellOptions:
    """Which cells of which specs are meant."""

    specs: Specs = None
    filter: Annotated[
        str | None,
        typer.Option("--filter", help="Only cells whose title has this in it; * is any text, ? any character."),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="I/N: the I-th of N parts of the cells, chosen by their keys alone."),
    ] = None

    @property
    def given(self) -> list[str]:
        """The specs that were named; empty for all."""
        return self.specs or []

    def selection(self, max_cells: int | None = None, last: frozenset[Status] = frozenset()) -> CellSelection:
        """What to leave of the specs' plan. Raises InvalidInput for a shard that is none."""
        from latentbench.execute.run import CellSelection, Shard

        return CellSelection(self.filter, None if self.shard is None else Shard.parse(self.shard), last, max_cells)


@dataclass(frozen=True)
class PlacementOptions:
    """Where cells are computed."""

    executor: Annotated[
        Literal["local", "inline", "ray"],
        typer.Option(help="local: a process per group of cells; inline: this process; ray: a Ray cluster."),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray cluster this machine belongs to; default: one is started here."),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes at a time; default: as many as the threads allow.", show_default=False),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda or cuda:N. With ray, auto is a GPU for cells whose `resources` ask for one."
        ),
    ] = "auto"
    scratch: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="With ray, where nodes share no disk: a folder on each node's own, e.g. '$TMPDIR/latentbench'. What a node lacks "
            "is brought there and what it made is brought here; files outside of the project must be on every node.",
            show_default=False,
        ),
    ] = None

    def placement(self) -> Placement:
        """The place that the options name."""
        from latentbench.execute.placement import Placement

        return Placement(self.executor, self.address, self.workers, self.device, self.scratch)


@dataclass(frozen=True)
class StoreOptions:
    """The folders of a verb that reads no files which specs name."""

    results: Results = None
    store: StoreFolder = None

    def project(self) -> Project:
        """The project around the current folder, with these folders."""
        return find_project(self.results, self.store)


@dataclass(frozen=True)
class FolderOptions(StoreOptions):
    """The folders of a verb that reads what specs name."""

    allow: Allow = None

    def project(self) -> Project:
        """The project around the current folder, with these folders."""
        return find_project(self.results, self.store, self.allow or ())


@dataclass(frozen=True)
class RunFolderOptions(StoreOptions):
    """The folders of a verb that fills the store, and how large it may become."""

    quota: Quota = None
    allow: Allow = None

    def project(self) -> Project:
        """The project around the current folder, with these folders."""
        return find_project(self.results, self.store, self.allow or ())


def with_option_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as Typer has to see it: a parameter for each field of an option group, in the order of `--help`.

    Typer knows no groups: it makes an option of each parameter in a function's signature. Two groups of one verb must
    not have a field in common, which is a ValueError when the verb is defined.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}

    def unfolded() -> Iterator[Parameter]:
        for name, parameter in signature(verb).parameters.items():
            if name in groups:
                yield from _options_of(groups[name])
            else:
                # By keyword, as Typer calls it: so a required group may follow an option that has a default.
                yield parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)

    parameters = list(unfolded())

    @wraps(verb)
    def called(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in fields(group)})
        verb(**options)

    # `wraps` leaves a trail to the verb, whose own signature Typer would find; what is set here comes first.
    called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _options_of(group: type) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])


def say(text: str, err: bool = False) -> None:
    """Prints text that may hold anything."""
    typer.echo(printable(text), err=err)


def print_json(value: Json) -> None:
    """JSON on standard output."""
    say(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def table_width() -> int:
    """Characters that a table may take: the terminal's, and the same everywhere in a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
