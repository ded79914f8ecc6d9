"""YAML as a tree that remembers, for every value, the file, line and column it was written at.

YAML's traps are closed here: duplicate keys are errors, `1e-4` is a number, `on`, `yes`, `010`, `12:30` and dates stay
text, aliases cannot form cycles or explode, and documents have a bounded size, depth and number of values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # the stubs know only the loaders made of it

from latentbench.core.errors import SpecError, SpecProblem
from latentbench.core.spec_model import Json

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_DIGITS = 300

Step = str | int
YamlPath = tuple[Step, ...]


@dataclass(frozen=True)
class Mark:
    """A place in a spec file; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def problem(self, message: str, path: str = "") -> SpecProblem:
        """A problem at this place."""
        return SpecProblem(self.file, self.line, self.column, path, message)


@dataclass(frozen=True)
class YamlNode:
    """A value of the merged spec: a map, a list or a scalar, and where it was written."""

    value: dict[str, YamlNode] | list[YamlNode] | str | int | float | bool | None
    mark: Mark
    key_mark: Mark | None = None
    """Where the key of this value was written, when it stands in a map."""

    def plain(self) -> Json:
        """The value as plain JSON data."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, step: Step) -> YamlNode | None:
        """The value under a key or list position, or None."""
        if isinstance(self.value, dict):
            return self.value.get(str(step))
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def children(self) -> Iterator[tuple[str, YamlNode]]:
        """Keys and values of a map; nothing where it is none."""
        yield from self.value.items() if isinstance(self.value, dict) else ()

    def walk(self, path: YamlPath = ()) -> Iterator[tuple[YamlPath, YamlNode]]:
        """This node and all below it with their paths, parents first."""
        yield path, self
        for key, child in self.children():
            yield from child.walk((*path, key))
        for number, child in enumerate(self.value if isinstance(self.value, list) else ()):
            yield from child.walk((*path, number))


def dotted(path: YamlPath) -> str:
    """`("dataset", "eval", 0)` as `dataset.eval[0]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def read_text(path: Path, shown: str) -> str:
    """The text of a spec file. Raises SpecError when it is missing, too large, or not UTF-8."""
    start = Mark(shown, 1, 1)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise SpecError([start.problem(f"larger than {MAX_BYTES:,} bytes; a spec is one experiment, split it")])
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([start.problem(f"not UTF-8 text (byte {error.start}); save the file as UTF-8")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([start.problem(f"cannot be read: {reason}")]) from None


@lru_cache(maxsize=128)
def parse(text: str, file: str, what: str = "spec") -> YamlNode:
    """The tree of one YAML document, all its problems raised at once as SpecError; `what` the document is.

    Kept, so that a parent is not read anew for each of its children: trees are never changed, only put together.
    """
    start = Mark(file, 1, 1)
    try:
        root = _composed(text)
    except RecursionError:
        raise SpecError([start.problem(f"nested deeper than {MAX_DEPTH} levels")]) from None
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax_problem(error, file)]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        mark = Mark(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise SpecError(
            [mark.problem(f"not YAML: the character U+{ord(text[error.position]):04X} is not allowed")]
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([start.problem(f"not YAML: {_one_line(str(error))}")]) from None
    if root is None:
        hint = "; `latentbench new` writes a spec to start from" if what == "spec" else ""
        raise SpecError([start.problem(f"the file is empty{hint}")])
    builder = _Builder(file, what)
    tree = builder.build(root, (), frozenset())
    if not isinstance(tree.value, dict):
        example = "model" if what == "spec" else "task"
        builder.problems.append(tree.mark.problem(f"a {what} is a map of keys to values, such as `{example}: …`"))
    if builder.problems:
        raise SpecError(builder.problems)
    return tree


class _Resolver(yaml.resolver.BaseResolver):
    """Plain scalars resolve as in YAML 1.2 JSON-like style, without the traps of YAML 1.1."""


_FLOAT = re.compile(
    r"[-+]?(0|[1-9][\d_]*)(\.[\d_]*)?([eE][-+]?\d+)?$|[-+]?\.\d[\d_]*([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
    re.ASCII,
)
_INT = re.compile(r"[-+]?(0|[1-9][\d_]*)$", re.ASCII)
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"(~|null|Null|NULL|)$")
_Resolver.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Resolver.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
_Resolver.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Resolver.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Loader(_Resolver, yaml.SafeLoader):
    """PyYAML's own parser: slow, but it says what is wrong with a text."""


class _FastLoader(_Resolver, yaml.composer.Composer, CParser):
    """libyaml's parser. PyYAML composes what it reads, for libyaml's own composer has no limit but the end of the stack."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        yaml.composer.Composer.__init__(self)
        _Resolver.__init__(self)


_DISPUTED = re.compile(
    r"[\t\ufeff]|---|(?:^|\s)\?|\A[^\[{]*[\[{][\s\S]*\?"  # question marks in prose are as they are
    r"|[|>][-+\d]*#|:\s*[,}\]]"
)
"""Where libyaml takes what PyYAML refuses, or sees an empty value at another place; found by comparing them on edited specs."""


def _composed(text: str) -> yaml.Node | None:
    if not _DISPUTED.search(text):
        try:
            return yaml.compose(text, Loader=cast(Any, _FastLoader))
        except (yaml.YAMLError, ValueError):
            pass  # PyYAML says it in the words that people know, and takes a few texts that libyaml refuses
    return yaml.compose(text, Loader=_Loader)


_TAG = "tag:yaml.org,2002:"
_KINDS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.MappingNode: ("map",),
    yaml.SequenceNode: ("seq",),
    yaml.ScalarNode: ("str", "int", "float", "bool", "null"),
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Builder:
    """Turns PyYAML's nodes into ours and collects every problem on the way."""

    def __init__(self, file: str, what: str) -> None:
        self.file, self.what = file, what
        self.problems: list[SpecProblem] = []
        self.values = 0

    def build(self, node: yaml.Node, path: YamlPath, above: frozenset[int]) -> YamlNode:
        mark = self.mark(node)
        self.values += 1
        refusal = self.refusal(node, path, above)
        if refusal:
            if self.values <= MAX_VALUES + 1:
                self.problems.append(mark.problem(refusal, dotted(path)))
            return YamlNode(None, mark)
        inside = above | {id(node)}
        if isinstance(node, yaml.MappingNode):
            return YamlNode(self.mapping(node, path, inside), mark)
        if isinstance(node, yaml.SequenceNode):
            return YamlNode([self.build(item, (*path, i), inside) for i, item in enumerate(node.value)], mark)
        return YamlNode(self.scalar(node, path), mark)

    def refusal(self, node: yaml.Node, path: YamlPath, above: frozenset[int]) -> str | None:
        if id(node) in above:
            return "an alias (*) refers to the value it stands in"
        if self.values > MAX_VALUES:
            return f"more than {MAX_VALUES:,} values (aliases counted as often as they are used)"
        if len(path) > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        return _unfit(node, self.what)

    def mapping(self, node: yaml.MappingNode, path: YamlPath, above: frozenset[int]) -> dict[str, YamlNode]:
        made: dict[str, YamlNode] = {}
        for key_node, value_node in node.value:
            key_mark = self.mark(key_node)
            key = str(key_node.value)
            if not isinstance(key_node, yaml.ScalarNode) or _unfit(key_node, self.what):
                self.problems.append(key_mark.problem("a key must be a word", dotted(path)))
                continue
            if key in made:
                first = made[key].key_mark
                line = first.line if first else "?"
                self.problems.append(
                    key_mark.problem(f"duplicate key, first written in line {line}", dotted((*path, key)))
                )
                continue
            child = self.build(value_node, (*path, key), above)
            made[key] = YamlNode(child.value, child.mark, key_mark)
        return made

    def scalar(self, node: yaml.Node, path: YamlPath) -> str | int | float | bool | None:
        text, kind = str(node.value), node.tag.rsplit(":", 1)[-1]
        if kind == "str":
            return text
        if kind in ("int", "float"):
            return self.number(node, text.replace("_", ""), kind, path)
        if not (_BOOL if kind == "bool" else _NULL).match(text):  # only a tag can say so
            self.problems.append(self.mark(node).problem(f"{text[:40]!r} is not a {kind}", dotted(path)))
        return text.lower() == "true" if kind == "bool" else None

    def number(self, node: yaml.Node, text: str, kind: str, path: YamlPath) -> int | float | None:
        try:
            if len(text) > MAX_DIGITS:
                raise ValueError
            value = int(text) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self.problems.append(self.mark(node).problem(f"{text[:40]!r} is not a number", dotted(path)))
            return None
        if isinstance(value, int) and abs(value) >= 2**63:
            self.problems.append(self.mark(node).problem("whole numbers have at most 64 bits here", dotted(path)))
            return None
        if not math.isfinite(value):
            self.problems.append(self.mark(node).problem("must be a finite number", dotted(path)))
            return None
        return value

    def mark(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1, node.start_mark.column + 1)


def _unfit(node: yaml.Node, what: str) -> str | None:
    """Why a value is not plain data, or None."""
    if node.tag.removeprefix(_TAG) not in _KINDS[type(node)]:
        return f"the tag {node.tag.replace(_TAG, '!!')!r} is not supported; {what}s are plain data" + (
            "" if what == "spec" else ", not code"
        )
    if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
        return "holds half of a surrogate pair, which is no character"
    return None


def _syntax_problem(error: yaml.MarkedYAMLError, file: str) -> SpecProblem:
    mark = error.problem_mark or error.context_mark
    said = error.problem or error.context or str(error)
    message = "not YAML: " + _one_line(f"{error.context}, {said}" if said.startswith("but ") else said)
    if "\\t" in message or "'\t'" in message:
        message += "; indent with spaces, not tabs"
    return SpecProblem(file, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, "", message)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
