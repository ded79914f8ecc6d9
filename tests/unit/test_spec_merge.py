"""`extends`: maps merge deep, lists replace, null clears; parents stay inside the project and end somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.core.errors import SpecError
from latentbench.core.spec_model import Json
from latentbench.core.yaml_tree import Mark, YamlNode
from latentbench.spec.merge import MAX_ANCESTORS, load_tree, merge, without_cleared
from tests.support.specs import write


def tree(root: Path, name: str = "s") -> Json:
    return load_tree(root / "specs" / f"{name}.yaml", root).plain()


def problem(root: Path, name: str = "s") -> str:
    with pytest.raises(SpecError) as caught:
        load_tree(root / "specs" / f"{name}.yaml", root)
    (found,) = caught.value.problems
    return str(found)


def test_maps_merge_deep_lists_replace_and_null_clears(tmp_path: Path) -> None:
    write(
        tmp_path,
        parent="a: {b: {c: 1, d: 2}, list: [1, 2, 3]}\nkept: yes\ngone: {x: 1}\nempty: null\n",
        s="extends: parent.yaml\na: {b: {d: 3, e: 4}, list: [9]}\ngone: null\n",
    )
    assert tree(tmp_path) == {"a": {"b": {"c": 1, "d": 3, "e": 4}, "list": [9]}, "kept": "yes"}


def test_a_cleared_value_can_be_set_again_further_down(tmp_path: Path) -> None:
    write(tmp_path, a="x: {y: 1}\n", b="extends: a.yaml\nx: null\n", s="extends: b.yaml\nx: {z: 2}\n")
    assert tree(tmp_path) == {"x": {"z": 2}}


def test_nulls_inside_of_lists_stay(tmp_path: Path) -> None:
    write(tmp_path, s="x: [1, null, {a: null}]\n")
    assert tree(tmp_path) == {"x": [1, None, {"a": None}]}


def test_later_parents_win_and_the_file_itself_wins_over_all(tmp_path: Path) -> None:
    write(tmp_path, a="x: 1\ny: 1\nz: 1\n", b="x: 2\ny: 2\n", s="extends: [a.yaml, b.yaml]\nx: 3\n")
    assert tree(tmp_path) == {"x": 3, "y": 2, "z": 1}


def test_a_diamond_is_fine(tmp_path: Path) -> None:
    write(
        tmp_path,
        top="a: 1\nb: 1\n",
        left="extends: top.yaml\na: 2\n",
        right="extends: top.yaml\nb: 3\n",
        s="extends: [left.yaml, right.yaml]\n",
    )
    assert tree(tmp_path) == {"a": 1, "b": 3}, "parents merge in the order given, what they inherit included"


@pytest.mark.parametrize("names", ["s", "s a", "s a b c"])
def test_a_cycle_is_told_with_its_way(tmp_path: Path, names: str) -> None:
    ring = names.split()
    write(tmp_path, **{n: f"x: 1\nextends: {m}.yaml\n" for n, m in zip(ring, [*ring[1:], ring[0]], strict=True)})
    way = " → ".join(f"specs/{n}.yaml" for n in [*ring, "s"])
    assert problem(tmp_path) == f"specs/{ring[-1]}.yaml:2:10: extends: extends itself: {way}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("absent.yaml", "1:10: extends: no such file: specs/absent.yaml"),
        ("../../out.yaml", "'../../out.yaml' leaves the project"),
        ("/etc/passwd", "'/etc/passwd' leaves the project"),
        ("link.yaml", "'link.yaml' leaves the project"),
        ("linked/out.yaml", "'linked/out.yaml' leaves the project"),
        ("3", "must be the path of a spec file"),
        ("{a: b}", "must be the path of a spec file"),
        ("[[a]]", "must be the path of a spec file"),
        ('"a\\0b"', "leaves the project"),
        ("x" * 300 + ".yaml", "no such file"),
        ("loop.yaml", "extends: "),
        (".", "no such file"),
    ],
)
def test_parents_that_cannot_be_are_refused(tmp_path: Path, value: str, words: str) -> None:
    root = tmp_path / "project"
    write(root, s=f"extends: {value}\n")
    (tmp_path / "out.yaml").write_text("secret: 1\n")
    (root / "specs/link.yaml").symlink_to(tmp_path / "out.yaml")
    (root / "specs/linked").symlink_to(tmp_path)
    (root / "specs/loop.yaml").symlink_to(root / "specs/loop.yaml")
    assert words in problem(root)


def test_all_bad_parents_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, s="extends: [3, ../../x.yaml,\n  4]\n")
    with pytest.raises(SpecError) as caught:
        load_tree(tmp_path / "specs/s.yaml", tmp_path)
    assert [(p.line, p.column) for p in caught.value.problems] == [(1, 11), (1, 14), (2, 3)]


def test_generations_are_limited(tmp_path: Path) -> None:
    def line(length: int) -> None:
        write(tmp_path, **{f"g{i}": f"extends: g{i + 1}.yaml\n" for i in range(length)}, **{f"g{length}": "x: 1\n"})

    line(MAX_ANCESTORS)
    assert tree(tmp_path, "g0") == {"x": 1}
    line(MAX_ANCESTORS + 1)
    assert "more than 32 generations of parents" in problem(tmp_path, "g0")


def test_many_ways_to_one_parent_read_it_once(tmp_path: Path) -> None:
    """Thirty diamonds on top of each other: 2^30 ways, 61 files."""
    files = {"top0": "x: 1\n"}
    for i in range(15):
        files |= {f"l{i}": f"extends: top{i}.yaml\n", f"r{i}": f"extends: top{i}.yaml\n"}
        files[f"top{i + 1}"] = f"extends: [l{i}.yaml, r{i}.yaml]\n"
    write(tmp_path, **files)
    assert tree(tmp_path, "top15") == {"x": 1}


def test_a_parents_problem_is_told_in_the_parents_file(tmp_path: Path) -> None:
    write(tmp_path, _base__p="a: 1\na: 2\n", s="extends: _base/p.yaml\n")
    assert problem(tmp_path).startswith("specs/_base/p.yaml:2:1: a: duplicate key")


def test_a_parents_name_is_its_own(tmp_path: Path) -> None:
    write(tmp_path, p="name: parent\nx: 1\n", s="extends: p.yaml\n")
    assert tree(tmp_path) == {"x": 1}


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ("{variant: topk, k: 4, width: 8}", "{variant: gated, l1: 1}", {"variant": "gated", "l1": 1}),
        ("{variant: topk, k: 4, width: 8}", "{variant: topk, k: 5}", {"variant": "topk", "k": 5, "width": 8}),
        ("{variant: topk, k: 4, width: 8}", "{k: 5}", {"variant": "topk", "k": 5, "width": 8}),
        ("{variant: topk, k: 4}", "{load: {adapter: x}}", {"load": {"adapter": "x"}}),
        ("{load: {adapter: x, id: 1}}", "{variant: topk, k: 4}", {"variant": "topk", "k": 4}),
        (
            "{load: {adapter: x, id: 1, release: r}}",
            "{load: {id: 2}}",
            {"load": {"adapter": "x", "id": 2, "release": "r"}},
        ),
        ("{load: {adapter: x, id: 1}}", "{load: {adapter: y}}", {"load": {"adapter": "y"}}),
        ("{adapter: files, path: a}", "{adapter: pocket, domain: law}", {"adapter": "pocket", "domain": "law"}),
        ("{k: 4}", "{variant: topk}", {"k": 4, "variant": "topk"}),
    ],
)
def test_naming_another_choice_replaces_the_inherited_one(tmp_path: Path, base: str, over: str, result: Json) -> None:
    write(tmp_path, p=f"sae: {base}\n", s=f"extends: p.yaml\nsae: {over}\n")
    assert tree(tmp_path) == {"sae": result}


MARK = Mark("f", 1, 1)


def node(value: Json) -> YamlNode:
    if isinstance(value, dict):
        return YamlNode({key: node(child) for key, child in value.items()}, MARK)
    return YamlNode([node(child) for child in value] if isinstance(value, list) else value, MARK)


keys = st.sampled_from("abc")
values = st.recursive(
    st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2), lambda v: st.dictionaries(keys, v, max_size=3)
)
maps = st.dictionaries(keys, values, max_size=3)


@given(maps, maps, maps)
def test_maps_without_null_merge_associatively_unless_kinds_clash(a: Json, b: Json, c: Json) -> None:
    """Where a scalar stands between two maps the outer map survives on one side only; everywhere else it holds."""
    left = merge(merge(node(a), node(b)), node(c)).plain()
    right = merge(node(a), merge(node(b), node(c))).plain()
    if not _clash(a, b, c):
        assert left == right


def _clash(*trees: Any) -> bool:
    kinds = {isinstance(tree, dict) for tree in trees if tree is not None}
    if len(kinds) > 1:
        return True
    if kinds != {True}:
        return False
    here = [tree for tree in trees if tree is not None]
    return any(_clash(*(tree.get(key) for tree in here)) for key in {k for tree in here for k in tree})


@given(maps)
def test_an_empty_map_and_the_tree_itself_change_nothing(a: Json) -> None:
    assert merge(node(a), node({})).plain() == merge(node({}), node(a)).plain() == merge(node(a), node(a)).plain() == a


@given(maps, maps)
def test_what_the_child_says_is_what_holds(a: Json, b: Json) -> None:
    def leaves(value: Json, path: tuple[str, ...] = ()) -> Any:
        for key, child in value.items():
            yield from leaves(child, (*path, key)) if isinstance(child, dict) and child else [((*path, key), child)]

    merged = merge(node(a), node(b)).plain()
    for path, leaf in leaves(b):
        found = merged
        for step in path:
            found = found[step]
        assert found == leaf or leaf == {}


@given(maps, st.lists(keys, min_size=1, max_size=3))
def test_null_clears_a_key_and_no_other(a: Json, path: list[str]) -> None:
    clearing: Json = None
    for step in reversed(path):
        clearing = {step: clearing}
    found = without_cleared(merge(node(a), node(clearing))).plain()
    for step in path[:-1]:
        assert isinstance(found, dict)
        found = found[step]
    assert path[-1] not in found
