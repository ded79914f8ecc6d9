"""Malformed specs: shipped ones with something done to them, and YAML that never was a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "specs").rglob("*.yaml"))

STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**62,
    -(2**63),
    1e-300,
    1e300,
    0.5,
    "",
    " ",
    "\x00",
    "\x1b[31m\x1b]0;x\x07",
    "\u202e\u2028\ufeff",
    "<script>alert(1)</script>",
    "../../../../etc/passwd",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "${HOME}",
    "$(id)",
    "%n%s",
    "{{7*7}}",
    "a" * 5000,
    "/".join("a" * 300),
    "*" * 40,
    "[" * 40,
    "**/**/**",
    "nan",
    "inf",
    "1e999",
    "yes",
    "self",
    "__class__",
    "model_config",
    "d\u0301",
    "\U0001f600",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": {}},
    {"adapter": "files"},
    {"adapter": "\x1b"},
    {"adapter": []},
    {"variant": "topk"},
    {"load": {}},
    {"__class__": 1},
    ["topk"] * 50,
    list(range(200)),
]

words = st.sampled_from(
    [
        "model",
        "layer",
        "layers",
        "dataset",
        "train",
        "eval",
        "base",
        "sae",
        "training",
        "metrics",
        "seeds",
        "matrix",
        "cases",
        "extends",
        "resources",
        "steering",
        "flow",
        "name",
        "description",
        "schema",
        "adapter",
        "variant",
        "method",
        "load",
        "path",
        "id",
        "tokens",
        "documents",
        "context",
        "width",
        "k",
        "label",
        "lr",
        "batch",
        "metric",
        "budgets",
        "judge",
        "subject",
        "site",
        "index",
        "point",
        "timeout",
        "memory",
        "cpus",
        "gpus",
        "budget",
        "judges",
        "problems",
        "revision",
        "dtype",
    ]
)
scalars = (
    st.sampled_from(STRANGE)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=30)
    | words
    | st.booleans()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=8), inner, max_size=4)
)


def parsed(path: Path) -> Any:
    """A shipped spec as plain data."""
    return yaml.safe_load(path.read_text("utf-8"))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a tree."""
    found = [path]
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, child in children:
        found += places(child, (*path, step))
    return found


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """The value at `path`."""
    for step in path:
        tree = tree[step]
    return tree


def changed(tree: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """The tree with the value at `path` replaced, removed, wrapped, or with a neighbour."""
    if not path:
        return {"replace": value, "wrap": [tree], "remove": {}}.get(how, tree)
    step, *rest = path
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest or how in ("replace", "wrap"):
        copy[step] = changed(tree[step], tuple(rest), how, value)
    elif how == "remove":
        del copy[step]
    elif how == "add" and isinstance(copy, dict):
        copy[str(value)[:50] or "x"] = tree[step]
    elif how == "rename" and isinstance(copy, dict):
        copy = {(str(value)[:50] if key == step else key): child for key, child in copy.items()}
    elif isinstance(copy, list):
        copy.insert(step, value)
    return copy


@st.composite
def mutated_trees(draw: st.DrawFn) -> str:
    """A shipped spec in which one to four values are replaced, removed, wrapped, renamed or joined by others."""
    tree = parsed(draw(st.sampled_from(SHIPPED)))
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        found = places(tree)
        if isinstance(tree, dict | list):
            how = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "add", "rename"]))
            tree = changed(tree, draw(st.sampled_from(found)), how, draw(values))
    return written(tree)


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    """A shipped spec in whose text something is cut, doubled, swapped or inserted."""
    text = draw(st.sampled_from(SHIPPED)).read_text("utf-8")
    for _ in range(draw(st.sampled_from([1, 1, 2, 6]))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.integers(0, 30)))
        piece = draw(
            st.sampled_from(
                ["", text[begin:end] * 2, "\n", ": ", "- ", "{", "[", "&a ", "*a", "!!x ", "'", '"', "|", "#"]
            )
        )
        text = text[:begin] + (piece or draw(st.text(max_size=6))) + text[end:]
    return text


@st.composite
def soups(draw: st.DrawFn) -> str:
    """Keys of specs with values that no spec has."""
    return written(draw(st.dictionaries(words, values, max_size=8)))


def written(tree: Any) -> str:
    """YAML of any tree; JSON where YAML's writer refuses."""
    try:
        return str(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False))
    except (yaml.YAMLError, UnicodeError, RecursionError):
        return json.dumps(tree, default=str)


malformed = st.one_of(*[mutated_trees()] * 4, *[mutated_texts()] * 2, soups(), st.text(max_size=300))
