"""A spec reads the same whichever parser reads it: libyaml, which is quick, or PyYAML, whose words people know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latentbench.core import yaml_tree
from latentbench.core.errors import SpecError
from latentbench.core.yaml_tree import parse

SHIPPED = sorted((Path(__file__).parents[2] / "specs").rglob("*.yaml"))
TEXTS = [path.read_text("utf-8") for path in SHIPPED]
PIECES = (
    *("a", ": ", ":", "- ", "\n", "\n  ", "\n    ", "[", "]", "{", "}", ", ", ",", '"', "'", "#", " #", "&a ", "*a", "? ", "?"),
    *("!!str ", "!x ", "|", ">", "|\n", ">-\n", "%", "---", "...", "\t", " ", "1e-4", "null", "~", "\u00e9", "\U0001f600", "\ufeff"),
    *("\x85", "\u2028", "\\", "\\x41", "\\ud800", "\\U0001F600", "@", "`", "<<", "=", "\r\n", "\r", "\0", "\x07", "on", "12:30"),
    *('""', "''", "-", "%YAML 1.1\n", "%TAG ! x\n", ".inf", "yes", "x: y"),
)  # fmt: skip


def seen(node: yaml.Node | None) -> Any:
    """All that is read from a node and those below it, with the places that messages tell."""
    if node is None:
        return None
    inside = [tuple(map(seen, child)) if isinstance(child, tuple) else seen(child) for child in node.value] if isinstance(
        node, yaml.CollectionNode
    ) else node.value  # fmt: skip
    return node.tag, node.start_mark.line, node.start_mark.column, inside


def outcome(text: str, loader: Any = None) -> Any:
    """What a text is read as, or that it is refused."""
    try:
        return seen(yaml.compose(text, Loader=loader) if loader else yaml_tree._composed(text))
    except (yaml.YAMLError, ValueError) as error:
        return type(error), str(error)


@st.composite
def edited(draw: st.DrawFn) -> str:
    """A part of a shipped spec with a few characters replaced."""
    text = draw(st.sampled_from(TEXTS))[: draw(st.integers(40, 600))]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.sampled_from(PIECES)) + text[place + draw(st.integers(0, 1)) :]
    return text


@settings(max_examples=400, deadline=None)
@given(edited() | st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("a: b\tc")  # libyaml takes the tab
@example("{revision: , a: b}")  # and sees the empty value at the comma
@example("[a? b]")
@example("? a")
@example("|#")
@example("---")
@example("a: \ufeffb")
def test_libyaml_is_asked_only_for_what_both_read_alike(text: str) -> None:
    assert outcome(text) == outcome(text, yaml_tree._Loader)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_read_by_libyaml(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not yaml_tree._DISPUTED.search(text)
    assert seen(yaml.compose(text, Loader=yaml_tree._FastLoader)) == seen(yaml.compose(text, Loader=yaml_tree._Loader))


@pytest.mark.parametrize("opened", ["[", "{a: ", "- ", "? "])
def test_a_text_nested_a_hundred_thousand_deep_is_refused(opened: str) -> None:
    """libyaml's own composer would overflow the stack, and end the process."""
    with pytest.raises(SpecError, match=r"nested deeper|not YAML"):
        parse("a: " + opened * 100_000, "s.yaml")


def test_disputed_texts_are_found_in_one_look() -> None:
    """A megabyte of opened brackets must not be looked through once for each of them."""
    assert yaml_tree._DISPUTED.search("[" * yaml_tree.MAX_BYTES) is None
    assert re.search(yaml_tree._DISPUTED, "[" * yaml_tree.MAX_BYTES + "?")
