"""Verbs about specs: new, list, show, validate, schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from latentbench.cli.options import Allow, AsJson, Specs, print_json, say
from latentbench.core.errors import InvalidInput, SpecError, SpecProblem
from latentbench.core.text import one_line, plural
from latentbench.spec.project import find_project


def new(
    path: Annotated[Path, typer.Argument(help="Where to write the spec, e.g. specs/mine/topk.yaml.")],
    template: Annotated[
        str, typer.Option("--from", help="A spec to start from: a file, or a name below specs/.")
    ] = "quickstart/topk",
) -> None:
    """Write a new spec, started from one that ships.

    Example: `latentbench new specs/mine/topk.yaml --from quickstart/topk`
    """
    from latentbench.spec.merge import rewritten
    from latentbench.spec.project import SUFFIXES, spec_paths
    from latentbench.store.files import write_bytes

    project = find_project()
    target = path if path.suffix in SUFFIXES else path.parent / f"{path.name or 'spec'}.yaml"
    if os.path.exists(target):
        raise InvalidInput(f"{target} exists already; choose another name")
    (source, *others) = spec_paths(project, [template])
    if others:
        raise InvalidInput(
            f"{template!r} means several specs; name one of {', '.join(str(p.name) for p in (source, *others))}"
        )
    below = source.is_relative_to(project.specs)
    named = source.relative_to(project.specs).with_suffix("").as_posix() if below else source.stem
    write_bytes(target, rewritten(source, target.resolve(), one_line(named)).encode())
    say(f"wrote {target}; next: latentbench validate {target}")


def list_(
    what: Annotated[
        str, typer.Argument(help="specs, models, datasets, problems, variants, sources, methods, metrics or judges.")
    ] = "specs",
    as_json: AsJson = False,
) -> None:
    """List the specs of the project, or what a spec can name.

    Examples: `latentbench list`, `latentbench list variants`
    """
    rows = _spec_rows() if what == "specs" else _plug_in_rows(what)
    if as_json:
        print_json([{"name": name, "help": text} for name, text in rows])
        return
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        say(f"{name:<{width}}  {text}".rstrip())


def show(
    spec: Annotated[str, typer.Argument(help="A spec file or name.")],
    origins: Annotated[bool, typer.Option("--origins", help="Show the file and line every value comes from.")] = False,
    as_json: AsJson = False,
    allow: Allow = None,
) -> None:
    """Show a spec with everything it inherits merged in, and its cells.

    Example: `latentbench show quickstart/topk --origins`
    """
    import yaml

    from latentbench.core.yaml_tree import dotted
    from latentbench.spec.project import load_specs

    for loaded in load_specs(find_project(allowed=allow or ()), [spec]):
        if as_json:
            print_json({"spec": loaded.tree.plain(), "cells": [cell.title for cell in loaded.cells]})
        elif origins:
            for path, node in loaded.tree.walk():
                if path and not isinstance(node.value, dict | list):
                    say(one_line(f"{dotted(path)}: {node.plain()!r}  ({node.mark.file}:{node.mark.line})"))
        else:
            say(yaml.safe_dump(loaded.tree.plain(), sort_keys=False, allow_unicode=True).rstrip())
            say(f"# {plural(len(loaded.cells), 'cell')}:")
            for cell in loaded.cells:
                say(f"#   {cell.title}")


def validate(specs: Specs = None, as_json: AsJson = False, allow: Allow = None) -> None:
    """Check specs: every key, value and reference, all problems at once, with file, line and column.

    Examples: `latentbench validate`, `latentbench validate specs/mine/*.yaml`
    """
    problems, files, cells = _validated(specs or [], allow)
    if as_json:
        print_json({"valid": not problems, "specs": files, "cells": cells, "problems": [vars(p) for p in problems]})
    for problem in problems if not as_json else ():
        say(str(problem), err=True)
    if problems:
        if not as_json:
            say(plural(len(problems), "problem"), err=True)
        raise typer.Exit(2)
    if not as_json:
        say(f"{plural(files, 'spec')}, {plural(cells, 'cell')}: valid")


def schema() -> None:
    """Print the JSON Schema of a spec, for editors that complete and check YAML.

    Example: `latentbench schema > spec.schema.json`
    """
    from latentbench.spec.reference import json_schema

    print_json(json_schema())


def _validated(given: list[str], allow: list[Path] | None) -> tuple[list[SpecProblem], int, int]:
    from latentbench.core.known_files import kept_in
    from latentbench.spec.checks import check, same_names
    from latentbench.spec.project import read_specs, spec_paths
    from latentbench.store.derived import Derived

    project = find_project(allowed=allow or ())
    paths = spec_paths(project, given)
    with kept_in(Derived(project.store)):
        loaded, problems = read_specs(project, paths)
        problems += [problem for spec in loaded for problem in check(spec, project.roots)]
    problems += same_names(loaded)
    return sorted(set(problems)), len(paths), sum(len(spec.cells) for spec in loaded)


def _spec_rows() -> list[tuple[str, str]]:
    from latentbench.spec.cells import load_spec
    from latentbench.spec.project import spec_paths

    project, rows = find_project(), []
    for path in spec_paths(project, []):
        try:
            spec = load_spec(path, project.root)
            about = " ".join((spec.description or "").split())
            rows.append((spec.origin.name, f"{plural(len(spec.cells), 'cell')}. {about}"))
        except SpecError as error:
            rows.append((str(path.relative_to(project.root)), f"invalid: {error.problems[0]}"))
    return rows


def _plug_in_rows(group: str) -> list[tuple[str, str]]:
    from latentbench.core.plugins import GROUPS, plugins

    if group not in GROUPS:
        raise InvalidInput(f"no such list: {group!r}; there are specs, {', '.join(GROUPS)}")
    return [(name, (cls.__doc__ or "").strip().splitlines()[0]) for name, cls in plugins(group).items()]
