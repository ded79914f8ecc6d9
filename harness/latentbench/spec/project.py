"""Where things are: the project folder, its specs, results and store, and the folders specs may read from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentbench.core.errors import InvalidInput, SpecError, SpecProblem
from latentbench.core.paths import Roots

if TYPE_CHECKING:  # verbs that read only results need no spec language, which takes a third of a second
    from latentbench.spec.cells import SpecFile

SUFFIXES = (".yaml", ".yml")
_MAX_PATH = 4096


@dataclass(frozen=True)
class Project:
    """A folder with specs/ and results/."""

    root: Path
    results: Path
    store: Path
    allowed: tuple[Path, ...] = ()

    @property
    def specs(self) -> Path:
        """The folder of specs."""
        return self.root / "specs"

    @property
    def roots(self) -> Roots:
        """Where specs may read files, and where what is made of them is kept."""
        return Roots(self.root, self.allowed, self.store)


def find_project(
    results: Path | None = None, store: Path | None = None, allowed: Iterable[Path] = (), start: Path | None = None
) -> Project:
    """The project around the current folder: the nearest folder upwards that holds specs/, else the current one."""
    here = (start or Path.cwd()).resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / "specs").is_dir()), here)
    from_environment = os.environ.get("LATENTBENCH_ALLOW", "")
    extra = [Path(part) for part in from_environment.split(os.pathsep) if part]
    results = (results or root / "results").resolve()
    return Project(
        root, results, (store or results / "store").resolve(), tuple(p.resolve() for p in (*extra, *allowed))
    )


def spec_paths(project: Project, given: Iterable[str]) -> list[Path]:
    """The spec files meant by files, folders, globs or spec names; all specs of the project when none is given.

    A name that is both a spec and a folder means both: the spec and everything in the folder, each once.
    Files below a folder whose name starts with `_` are parents, not experiments: only naming them runs them.
    Raises InvalidInput for what matches nothing.
    """
    found: dict[Path, None] = {}
    for text in list(given) or [str(project.specs)]:
        matches = _matches(project, text)
        if not matches:
            raise InvalidInput(f"no spec matches {text!r}; `latentbench list` shows the specs of this project")
        found |= dict.fromkeys(matches)
    return list(found)


def load_specs(project: Project, given: Iterable[str]) -> list[SpecFile]:
    """The specs meant, loaded. Raises SpecError with the problems of all of them."""
    specs, problems = read_specs(project, spec_paths(project, given))
    if problems:
        raise SpecError(problems)
    return specs


def read_specs(project: Project, paths: Iterable[Path]) -> tuple[list[SpecFile], list[SpecProblem]]:
    """The specs that can be loaded, and the problems of the others."""
    specs: list[SpecFile] = []
    problems: list[SpecProblem] = []
    for path in paths:
        try:
            specs.append(_load(project, path))
        except SpecError as error:
            problems += error.problems
    return specs, problems


def _load(project: Project, path: Path) -> SpecFile:
    from latentbench.spec.cells import load_spec
    from latentbench.spec.resolve import with_budgets, with_layers

    def load(file: Path) -> SpecFile:
        return load_spec(file, project.root)

    return with_layers(with_budgets(load(path), project.root, project.roots, load), project.roots)


def _matches(project: Project, text: str) -> list[Path]:
    """Everything that a name means: a file, a spec, and all specs of a folder, be it here or below specs/; else a glob.

    Where `x` is a spec and a folder, it means both and hides neither: `x.yaml` is the spec alone, `x/` the folder.
    """
    path = Path(text)
    if len(text) > _MAX_PATH or "\0" in text:
        return []
    files = (path, *(project.specs / f"{text}{suffix}" for suffix in SUFFIXES))
    found = [file.resolve() for file in files if file.is_file()]
    for folder in (path, project.specs / text):
        found += _below(folder) if folder.is_dir() else []
    return found or _globbed(path)


def _globbed(pattern: Path) -> list[Path]:
    try:
        matches = sorted(p for p in Path().glob(str(pattern)) if p.suffix in SUFFIXES)
    except (ValueError, NotImplementedError):  # of an absolute path, or of one that is no pattern
        return []
    return [p.resolve() for p in matches if not _is_parent(p)]


def _below(folder: Path) -> list[Path]:
    files = (p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    return sorted(p.resolve() for p in files if not _is_parent(p.relative_to(folder)))


def _is_parent(path: Path) -> bool:
    return any(part.startswith("_") for part in path.parts[:-1])
