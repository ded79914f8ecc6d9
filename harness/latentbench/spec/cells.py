"""A spec file becomes cells: one per case, matrix combination and seed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from latentbench.core.errors import SpecError, SpecProblem
from latentbench.core.hashing import canonical, digest
from latentbench.core.spec_model import SpecModel
from latentbench.core.text import one_line
from latentbench.core.validation_errors import problem_at, problems_of
from latentbench.core.yaml_tree import YamlNode
from latentbench.records.record import SpecOrigin
from latentbench.spec.experiment import Experiment, Header, desugared, valid_name
from latentbench.spec.merge import load_tree, merge, without_cleared

HEADER = frozenset({"schema", "name", "description", "extends", "seeds", "matrix", "cases"})
MAX_CELLS = 10_000

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Cell:
    """One row-to-be: an experiment with one seed. Cells are compared by identity."""

    origin: SpecOrigin
    label: str
    """What distinguishes the cell within its spec, e.g. `topk,sae.k=8`; empty when the spec is one cell."""
    experiment: Experiment
    seed: int

    @property
    def title(self) -> str:
        """Unique readable name, e.g. `quickstart/topk[sae.k=8][seed=0]`."""
        return (
            f"{self.origin.name}[{self.label}][seed={self.seed}]"
            if self.label
            else f"{self.origin.name}[seed={self.seed}]"
        )


@dataclass(frozen=True)
class SpecFile:
    """A loaded spec: its merged tree and the cells it describes."""

    origin: SpecOrigin
    description: str | None
    tree: YamlNode
    cells: tuple[Cell, ...]
    trees: tuple[YamlNode, ...]
    """For every cell the tree it was read from, to locate what later turns out to be wrong."""

    def changed(self, change: Callable[[Experiment, YamlNode], Experiment]) -> SpecFile:
        """The spec with what `change` makes of every experiment, asked once for all seeds of one.

        Raises SpecError with the problems of all of them.
        """
        # Seeds share the experiment as an object. Two equal ones of two cases are asked twice: their problems stand in two places.
        made: dict[int, Experiment] = {}
        problems: list[SpecProblem] = []
        for cell, tree in zip(self.cells, self.trees, strict=True):
            old = cell.experiment
            if id(old) not in made:
                made[id(old)] = _collect(problems, lambda old=old, tree=tree: change(old, tree)) or old  # type: ignore[misc]
        if problems:
            raise SpecError(problems)
        return replace(self, cells=tuple(replace(cell, experiment=made[id(cell.experiment)]) for cell in self.cells))


def load_spec(path: Path, root: Path) -> SpecFile:
    """The spec at `path` in the project `root`, expanded. Raises SpecError with every problem of the file."""
    tree = load_tree(path, root, Experiment)
    problems: list[SpecProblem] = []
    header = _collect(problems, lambda: _header(tree))
    if header is None:  # what the header would vary is unknown, but the rest can be read as it stands
        assert isinstance(tree.value, dict)  # load_tree() saw to it
        tree, header = YamlNode({k: v for k, v in tree.value.items() if k not in HEADER}, tree.mark), Header()
    origin = _collect(problems, lambda: _origin(tree, header, path.resolve(), root.resolve()))
    found: list[tuple[str, Experiment, YamlNode]] = []
    reader = _Reader()
    for label, variant in _combinations(tree, header):
        experiment = _collect(problems, lambda variant=variant: reader.experiment(variant))  # type: ignore[misc]
        if experiment:
            found.append((label, experiment, variant))
    if problems or origin is None:
        raise SpecError(problems)
    cells = tuple(Cell(origin, label, exp, seed) for label, exp, _ in found for seed in header.seeds)
    trees = tuple(variant for *_, variant in found for _ in header.seeds)
    return SpecFile(origin, header.description, tree, cells, trees)


def _collect(problems: list[SpecProblem], make: Callable[[], T]) -> T | None:
    """What `make` returns; its problems are added to the list and None is returned when it has some."""
    try:
        return make()
    except SpecError as error:
        problems += error.problems
        return None


class _Reader:
    """Reads the experiments of one spec. A section that several of them have alike is the same object in all of them."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[str, YamlNode]] = {}
        self._sections: dict[tuple[str, str], Any] = {}

    def experiment(self, tree: YamlNode) -> Experiment:
        """The experiment that a tree describes. Raises SpecError."""
        with _located(Experiment, tree):
            texts = {name: self._text(name, node) for name, node in tree.children() if node.value is not None}
            # JSON mode is strict about types and still takes lists for tuples.
            joined = ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items())
            made = Experiment.model_validate_json(f"{{{joined}}}", strict=True)
        sections = ((name, text, getattr(made, name)) for name, text in texts.items())
        return made.model_copy(
            update={name: self._sections.setdefault((name, text), part) for name, text, part in sections}
        )

    def _text(self, name: str, node: YamlNode) -> str:
        """A section as JSON, written once for all combinations that leave it as it is."""
        if id(node) not in self._texts:
            fields = Experiment.model_fields
            read = without_cleared(
                node, fields[name].annotation if name in fields else None
            )  # a case may clear something too
            self._texts[id(node)] = json.dumps(desugared(name, read.plain())), node  # which so keeps its number
        return self._texts[id(node)][0]


@contextmanager
def _located(model: type[SpecModel], tree: YamlNode) -> Iterator[None]:
    """While open, what pydantic finds wrong is raised as a SpecError that says where."""
    try:
        yield
    except ValidationError as error:
        raise SpecError(problems_of(error, tree, model)) from None
    except (UnicodeEncodeError, ValueError) as error:
        raise SpecError([tree.mark.problem(f"cannot be read as data: {error}")]) from None


def _header(tree: YamlNode) -> Header:
    assert isinstance(tree.value, dict)
    written = YamlNode({k: v for k, v in tree.value.items() if k in HEADER}, tree.mark)
    with _located(Header, written):
        header = Header.model_validate_json(json.dumps(written.plain()), strict=True)
    problems = [*_seed_problems(tree, header), *_case_problems(tree), *_matrix_problems(tree, header)]
    if problems:
        raise SpecError(problems)
    return header


def _origin(tree: YamlNode, header: Header, path: Path, root: Path) -> SpecOrigin:
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    name = header.name or shown.removeprefix("specs/").removesuffix(".yaml").removesuffix(".yml")
    if not valid_name(name):
        message = f"the file name gives the spec the name {name[:60]!r}; use letters, digits, '.', '_' and '-', or set `name:`"
        raise SpecError([tree.mark.problem(message, "name")])
    return SpecOrigin(name=name, path=shown, digest=digest("spec", tree.plain()))


def _seed_problems(tree: YamlNode, header: Header) -> Iterator[SpecProblem]:
    for position, seed in enumerate(header.seeds):
        if seed in header.seeds[:position]:
            yield problem_at(tree, ("seeds", position), f"the seed {seed} stands here twice")


def _case_problems(tree: YamlNode) -> Iterator[SpecProblem]:
    labels: set[str] = set()
    for position, case in enumerate(_items(tree.child("cases"))):
        label = case.child("label")
        where = ("cases", position, "label")
        if label is None or not isinstance(label.value, str) or not valid_name(label.value):
            yield problem_at(tree, where, "every case needs a `label` of letters, digits, '.', '_' and '-'")
        elif label.value in labels:
            yield problem_at(tree, where, f"the label {label.value!r} stands here twice")
        else:
            labels.add(label.value)
        for key in sorted((case.value if isinstance(case.value, dict) else {}).keys() & HEADER):
            yield problem_at(tree, ("cases", position, key), f"a case cannot change {key!r}")


def _matrix_problems(tree: YamlNode, header: Header) -> Iterator[SpecProblem]:
    count = max(1, len(header.cases)) * len(header.seeds)
    for path, values in header.matrix.items():
        count *= len(values)  # counted before any combination is made: ten axes of ten values would fill the memory
        seen: set[str] = set()
        if path.split(".")[0] in HEADER or not all(path.split(".")):
            yield problem_at(
                tree, ("matrix", path), f"{path!r} is not a dotted path into the experiment, such as sae.k"
            )
        for position, value in enumerate(values):
            if canonical(value) in seen:
                yield problem_at(tree, ("matrix", path, position), "this value stands here twice")
            seen.add(canonical(value))
    if count > MAX_CELLS:
        yield problem_at(tree, ("matrix",), f"{count:,} cells in one spec, more than {MAX_CELLS:,}; split it")


def _combinations(tree: YamlNode, header: Header) -> Iterator[tuple[str, YamlNode]]:
    """Label and tree of every case and matrix combination, header keys removed."""
    assert isinstance(tree.value, dict)
    body = YamlNode({k: v for k, v in tree.value.items() if k not in HEADER}, tree.mark)
    axes = [[(path, node) for node in _items(tree.child("matrix"), path)] for path in header.matrix]
    for case in _items(tree.child("cases")) or [None]:
        named = _with_case(body, case)
        for values in itertools.product(*axes):
            changed = named
            for path, node in values:
                changed = _set(changed, path.split("."), node)
            yield _label(case, values), changed


def _with_case(body: YamlNode, case: YamlNode | None) -> YamlNode:
    if case is None:
        return body
    assert isinstance(case.value, dict)  # the header's validation saw to it
    return merge(body, YamlNode({k: v for k, v in case.value.items() if k != "label"}, body.mark))


def _label(case: YamlNode | None, values: tuple[tuple[str, YamlNode], ...]) -> str:
    parts = [str(case.plain()["label"])] if case else []
    for path, node in values:
        value = node.plain()
        parts.append(f"{path}={one_line(value if isinstance(value, str) else canonical(value))}")
    return ",".join(parts)


def _set(tree: YamlNode, path: list[str], value: YamlNode) -> YamlNode:
    """The tree with `value` at a path; maps on the way are made as needed."""
    if not path:
        return YamlNode(value.value, value.mark, tree.key_mark)
    inner = dict(tree.value) if isinstance(tree.value, dict) else {}
    inner[path[0]] = _set(inner.get(path[0], YamlNode({}, value.mark)), path[1:], value)
    return YamlNode(inner, tree.mark, tree.key_mark)


def _items(node: YamlNode | None, key: str | None = None) -> list[Any]:
    found = node.child(key) if node is not None and key is not None else node
    return found.value if found is not None and isinstance(found.value, list) else []
