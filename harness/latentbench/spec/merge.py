"""`extends`: a spec on top of one or many others; and a new spec, started from one that exists.

Maps merge deep, lists and scalars replace, `null` clears an inherited value (but is the value of the few settings of which the
reference says so). A map that names another `adapter`,
`variant`, `method` or `load` than the inherited one replaces it as a whole: options of one variant mean nothing to another.
Parents are merged in the order given, later ones over earlier ones; a parent reached by two ways (a diamond) is fine,
a parent that extends its own child is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from latentbench.core.errors import SpecError, SpecProblem
from latentbench.core.spec_model import SpecModel
from latentbench.core.yaml_tree import Mark, YamlNode, parse, read_text

CHOICES = ("adapter", "variant", "method", "load")


MAX_ANCESTORS = 32


def load_tree(path: Path, root: Path, model: type[SpecModel] | None = None) -> YamlNode:
    """The tree of the spec at `path`, which is read as a `model`, with all its parents merged in; no file outside `root` is read."""
    return without_cleared(_Inheritance(root.resolve()).load(path.resolve(), (), None), model)


def merge(base: YamlNode, over: YamlNode) -> YamlNode:
    """`over` on top of `base`."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)) or _chooses_another(base.value, over.value):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return YamlNode(merged, over.mark, over.key_mark)


def without_cleared(node: YamlNode, model: Any = None) -> YamlNode:
    """The tree without the keys that a `null` cleared; where it is read as a `model`, settings that may be null keep theirs."""
    if not isinstance(node.value, dict):
        return node
    fields = model.model_fields if isinstance(model, type) and issubclass(model, SpecModel) else {}
    kept = {
        key: without_cleared(child, fields[key].annotation if key in fields else None)
        for key, child in node.value.items()
        if child.value is not None or (key in fields and _may_be_null(fields[key]))
    }
    return YamlNode(dict(kept), node.mark, node.key_mark)


def _may_be_null(field: FieldInfo) -> bool:
    """Whether null says something else than leaving the setting out."""
    return field.default is not None and type(None) in get_args(field.annotation)


def _chooses_another(base: dict[str, YamlNode], over: dict[str, YamlNode]) -> bool:
    chosen = {key: over[key].plain() for key in CHOICES if key in over}
    inherited = {key: base[key].plain() for key in CHOICES if key in base}
    if not (chosen and inherited):
        return False
    # `load:` holds a map, so two of them are merged like any maps and only its appearance is another choice.
    return any(inherited.get(key) != value for key, value in chosen.items() if key != "load" or key not in inherited)


class _Inheritance:
    """Reads each file of a spec's ancestry once, however many ways lead to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded: dict[Path, YamlNode] = {}

    def load(self, path: Path, children: tuple[Path, ...], asked: Mark | None) -> YamlNode:
        self.refuse(path, children, asked or Mark(self.shown(path), 1, 1))
        if path not in self.loaded:
            self.loaded[path] = self.read(path, children)
        return self.loaded[path]

    def read(self, path: Path, children: tuple[Path, ...]) -> YamlNode:
        tree = parse(read_text(path, self.shown(path)), self.shown(path))
        merged: YamlNode | None = None
        for parent, mark in self.parents(tree, path):
            inherited = self.load(parent, (*children, path), mark)
            merged = merge(merged, inherited) if merged else inherited
        own = _without(tree, "extends")
        # A child that inherited its parent's name would collide with it.
        return merge(_without(merged, "name"), own) if merged else own

    def refuse(self, path: Path, children: tuple[Path, ...], mark: Mark) -> None:
        if path in children:
            names = " → ".join(self.shown(p) for p in (*children[children.index(path) :], path))
            raise SpecError([mark.problem(f"extends itself: {names}", "extends")])
        if len(children) > MAX_ANCESTORS:
            raise SpecError([mark.problem(f"more than {MAX_ANCESTORS} generations of parents", "extends")])
        if children and not _is_file(path):
            raise SpecError([mark.problem(f"no such file: {self.shown(path)}", "extends")])

    def parents(self, tree: YamlNode, path: Path) -> list[tuple[Path, Mark]]:
        node = tree.child("extends")
        if node is None or node.value is None:
            return []
        found: list[tuple[Path, Mark]] = []
        problems: list[SpecProblem] = []
        for item in node.value if isinstance(node.value, list) else [node]:
            parent = _resolve(path.parent, item.value) if isinstance(item.value, str) else None
            if not isinstance(item.value, str):
                problems.append(item.mark.problem("must be the path of a spec file, or a list of them", "extends"))
            elif parent is None or not parent.is_relative_to(self.root):
                problems.append(item.mark.problem(f"{item.value[:200]!r} leaves the project", "extends"))
            else:
                found.append((parent, item.mark))
        if problems:
            raise SpecError(problems)
        return found

    def shown(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def _without(tree: YamlNode, key: str) -> YamlNode:
    assert isinstance(tree.value, dict)  # parse() refuses anything else at the top
    return YamlNode({name: child for name, child in tree.value.items() if name != key}, tree.mark)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _resolve(folder: Path, name: str) -> Path | None:
    try:
        return (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):  # NUL bytes, names too long, loops of symbolic links
        return None


GUIDE = """\
# Started from {source}. What else it could say: `latentbench list variants` (models, datasets, metrics, …) and
# specs/README.md; where each value comes from: `latentbench show --origins` with this file.
"""
_NAME = re.compile(r"^name:.*\n", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")


def rewritten(source: Path, target: Path, started_from: str) -> str:
    """The text of `source` as a spec at `target`: its parents' paths still lead to them, its name is its own.

    What it was `started_from` stands at its top, beside where to find what else it could say.

    Raises SpecError when `source` cannot be read.
    """
    text = read_text(source, source.name)
    parse(text, source.name)
    # From the end, so that the places of those before stay what the parser said.
    for item in reversed(list(_parents(text))):
        path = os.path.relpath((source.parent / item.value).resolve(), target.parent)
        written = path if _PLAIN.fullmatch(path) else json.dumps(path)
        text = text[: item.start_mark.index] + written + text[item.end_mark.index :]
    return GUIDE.format(source=started_from) + _NAME.sub("", text)


def _parents(text: str) -> Iterator[yaml.ScalarNode]:
    """The scalars under `extends` in the order of the file."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "extends":
            items = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (item for item in items if isinstance(item, yaml.ScalarNode))
