"""YAML's traps are closed, and whatever a file holds, a reader gets a tree or a located SpecError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from latentbench.core.errors import SpecError
from latentbench.core.yaml_tree import MAX_BYTES, MAX_DEPTH, MAX_VALUES, dotted, parse, read_text


def value(text: str) -> Any:
    """What `x` is after `x: <text>`."""
    return parse(f"x: {text}\n", "s.yaml").plain()["x"]


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(text, "s.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("8.", 8.0),
        (".5", 0.5),
        ("-.5e2", -50.0),
        ("1_000_000", 1_000_000),
        ("+3", 3),
        ("-0", 0),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
    ],
)
def test_numbers_booleans_and_nulls_are_what_they_look_like(written: str, meant: Any) -> None:
    found = value(written)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    "written",
    [
        "on",
        "off",
        "yes",
        "no",
        "y",
        "N",
        "010",
        "0x10",
        "0o17",
        "0b1",
        "12:30",
        "1:30:00",
        "2024-01-01",
        "2024-01-01T00:00:00Z",
        "1.2.3",
        "1e",
        "e5",
        "_1",
        "1٢",
        "١",
        "=",
        "nan",
        "inf",
        "NULLA",
        "tRUE",
        "1 000",
    ],
)
def test_what_other_readers_would_convert_stays_text(written: str) -> None:
    assert value(written) == written


@pytest.mark.parametrize("written", [".nan", ".inf", "-.INF", "1e999", "9" * 400, "!!float nan"])
def test_numbers_that_are_not_finite_or_absurdly_long_are_refused(written: str) -> None:
    assert any(words in problems(f"x: {written}\n")[0] for words in ("finite number", "is not a number"))


def test_whole_numbers_have_the_64_bits_that_machines_count_with() -> None:
    assert value(str(2**63 - 1)) == 2**63 - 1
    assert value("1" + "0" * 30 + ".0") == 1e30
    assert "at most 64 bits" in problems(f"x: {2**63}\n")[0]


@pytest.mark.parametrize(
    "written",
    [
        "!!python/object:os.system {}",
        "!!python/name:os.system",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!binary aGk=",
        "!x 1",
        "!!timestamp 2024-01-01",
        "!!seq {a: 1}",
        "!!map [1]",
        "!!str [1]",
        "!!int [1]",
        "!!python/dict {a: 1}",
    ],
)
def test_tags_beyond_plain_data_are_refused(written: str) -> None:
    assert problems(f"x: {written}\n") == [
        f"s.yaml:1:4: x: the tag {written.split(' ')[0]!r} is not supported; specs are plain data"
    ]


@pytest.mark.parametrize(
    "written", ["!!bool maybe", "!!bool yes", "!!null none", "!!int abc", "!!int 1.5", "!!float x"]
)
def test_a_tag_does_not_make_a_word_what_it_is_not(written: str) -> None:
    assert "is not a" in problems(f"x: {written}\n")[0]


def test_a_tag_may_say_what_a_value_is_anyway() -> None:
    assert parse("{a: !!str 1, b: !!int 2, c: !!float 3, d: !!bool true, e: !!null '', f: !!map {}}", "s").plain() == {
        "a": "1",
        "b": 2,
        "c": 3.0,
        "d": True,
        "e": None,
        "f": {},
    }


def test_duplicate_keys_are_errors_at_every_depth() -> None:
    assert problems("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n") == [
        "s.yaml:4:3: b.c: duplicate key, first written in line 3",
        "s.yaml:5:1: a: duplicate key, first written in line 1",
    ]


def test_keys_are_duplicates_whatever_they_are_quoted_with() -> None:
    assert "duplicate key" in problems("1: a\n'1': b\n")[0]


def test_a_merge_key_is_an_ordinary_key() -> None:
    assert parse("a: &a {x: 1}\nb: {<<: *a}\n", "s").plain() == {"a": {"x": 1}, "b": {"<<": {"x": 1}}}


@pytest.mark.parametrize(
    "text", ["? [1, 2]\n: x\n", "? {a: b}\n: x\n", "{[1]: 2}", "? !x a\n: 1\n", "? !!set {}\n: 1\n"]
)
def test_keys_must_be_words(text: str) -> None:
    assert "a key must be a word" in problems(text)[0]


def test_aliases_repeat_values_but_cannot_hold_themselves() -> None:
    assert parse("a: &a [1, 2]\nb: *a\n", "s").plain()["b"] == [1, 2]
    assert "an alias (*) refers to the value it stands in" in problems("a: &a [*a]\n")[0]
    assert "an alias (*) refers to the value it stands in" in problems("a: &a {b: {c: *a}}\n")[0]
    assert "undefined alias" in problems("a: *nobody\n")[0]


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (problem,) = problems(bomb)
    assert f"more than {MAX_VALUES:,} values" in problem


def test_a_document_has_a_largest_depth_and_number_of_values() -> None:
    assert parse("x: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "s")
    for depth in (MAX_DEPTH + 2, 400, 20_000):
        assert "nested deeper than 32 levels" in problems("x: " + "[" * depth + "]" * depth)[0]
    assert "nested deeper" in problems("\n".join(" " * i + "a:" for i in range(900)) + "\n")[0]
    assert "values" in problems("x: [" + "1," * (MAX_VALUES + 5) + "]")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\n---\nb: 2\n", "s.yaml:2:1: not YAML: expected a single document"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("a: [1, 2\n", "not YAML"),
        ("a:\n\t- b\n", "indent with spaces, not tabs"),
        ("a: 1\nb: x\0y\n", "s.yaml:2:5: not YAML: the character U+0000 is not allowed"),
        ("just words\n", "a spec is a map of keys to values"),
        ("- a\n- b\n", "a spec is a map of keys to values"),
        ('x: "\\ud800"\n', "half of a surrogate pair"),
        ('{"\\udfff": 1}\n', "a key must be a word"),
        ("%YAML 3.0\n---\na: 1\n", "not YAML"),
        ("a: 'x\n", "not YAML"),
        ("a: @b\n", "not YAML"),
    ],
)
def test_malformed_documents_get_one_clear_problem(text: str, words: str) -> None:
    (problem,) = problems(text)
    assert words in problem
    assert "\n" not in problem


def test_all_problems_of_a_document_are_told_at_once() -> None:
    found = problems("a: .nan\nb: !x 1\nc: {d: 1, d: 2}\n")
    assert [line.split(": ")[0] for line in found] == ["s.yaml:1:4", "s.yaml:2:4", "s.yaml:3:11"]


def test_every_value_knows_its_place() -> None:
    tree = parse("a: 1\nb:\n  - c: x\n    d: [1, two]\n", "s.yaml")
    places = {dotted(path): (n.mark.line, n.mark.column) for path, n in tree.walk()}
    assert places["b[0].c"] == (3, 8)
    assert places["b[0].d[1]"] == (4, 12)
    key = tree.child("b").child(0).child("d").key_mark  # type: ignore[union-attr]
    assert key is not None
    assert (key.line, key.column) == (4, 5)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    def said(content: bytes) -> str:
        (tmp_path / "s.yaml").write_bytes(content)
        with pytest.raises(SpecError) as caught:
            read_text(tmp_path / "s.yaml", "s.yaml")
        return str(caught.value)

    assert "larger than 1,048,576 bytes" in said(b"#" * (MAX_BYTES + 1))
    assert "not UTF-8 text (byte 3)" in said(b"a: \xff\n")
    assert "not UTF-8" in said("a: b".encode("utf-16"))
    for path in (tmp_path, tmp_path / "absent.yaml", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(SpecError, match="cannot be read"):
            read_text(path, "s.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert parse("\ufeffa: 1\n", "s").plain() == {"a": 1}


def tree_or_problems(text: str) -> None:
    try:
        tree = parse(text, "s.yaml")
    except SpecError as error:  # the other of two outcomes that are right
        lines = (
            text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 1
        )
        assert error.problems  # noqa: PT017
        assert all(1 <= problem.line <= lines + 1 and problem.column >= 1 for problem in error.problems)  # noqa: PT017
    else:
        assert isinstance(tree.plain(), dict)


@given(st.text(max_size=200))
def test_any_text_gives_a_tree_or_a_spec_error(text: str) -> None:
    tree_or_problems(text)


@given(st.lists(st.sampled_from([*"&*!:-?{}[],#|>@`\"'% \n\t~<.0a", "!!", "<<", "---", "...", "\\ud800"]), max_size=40))
def test_any_soup_of_yaml_signs_gives_a_tree_or_a_spec_error(signs: list[str]) -> None:
    tree_or_problems("".join(signs))


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_give_text_or_a_spec_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    try:
        tree_or_problems(read_text(path, "s.yaml"))
    except SpecError as error:  # the other of two outcomes that are right
        assert "UTF-8" in str(error)  # noqa: PT017


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
)
documents = st.dictionaries(
    st.text(max_size=30),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@given(documents)
def test_json_is_read_back_as_it_was_written(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    try:
        found = parse(text, "s.yaml").plain()
    except SpecError as error:  # the other of two outcomes that are right
        # JSON's \\u escapes of characters beyond the first plane are pairs of halves, which YAML does not join.
        assert "surrogate" in str(error) or "a key must be a word" in str(error)  # noqa: PT017
    else:
        assert found == document


@given(documents)
def test_what_another_yaml_writer_wrote_gives_a_tree_or_a_spec_error(document: dict[str, Any]) -> None:
    tree_or_problems(yaml.safe_dump(document, sort_keys=False))
