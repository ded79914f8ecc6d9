"""A spec file becomes cells: cases × matrix × seeds, each with its own label, all problems at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentbench.core.errors import SpecError
from latentbench.core.text import one_line
from latentbench.spec.cells import load_spec
from tests.support.specs import PLAIN, load, said, write


def labels(root: Path) -> list[str]:
    return [f"{cell.label}/{cell.seed}" for cell in load(root).cells]


def test_a_plain_spec_is_one_cell_named_after_its_path(tmp_path: Path) -> None:
    write(tmp_path, deep__er__s=PLAIN)
    (cell,) = load(tmp_path, "deep/er/s").cells
    assert cell.title == "deep/er/s[seed=0]"
    assert (cell.origin.name, cell.origin.path) == ("deep/er/s", "specs/deep/er/s.yaml")


def test_cases_matrix_and_seeds_multiply_in_order(tmp_path: Path) -> None:
    extra = "seeds: [3, 1]\nmatrix: {sae.k: [2, 4], training.lr: [1e-3]}\n"
    extra += "cases: [{label: small, sae: {width: 8}}, {label: wide, sae: {width: 99}}]\n"
    write(tmp_path, s=PLAIN + extra)
    assert labels(tmp_path)[:3] == [
        "small,sae.k=2,training.lr=0.001/3",
        "small,sae.k=2,training.lr=0.001/1",
        "small,sae.k=4,training.lr=0.001/3",
    ]
    cells = load(tmp_path).cells
    assert len(cells) == 8
    assert [(c.experiment.sae.width, c.experiment.sae.k) for c in cells[::2]] == [(8, 2), (8, 4), (99, 2), (99, 4)]  # type: ignore[union-attr]


def test_a_case_may_replace_the_variant_and_the_matrix_may_hold_maps(tmp_path: Path) -> None:
    extra = "matrix:\n  sae: [{variant: topk, width: 8, k: 1}, {variant: sae_lens_standard, width: 8, l1: 1}]\n"
    write(tmp_path, s=PLAIN + extra)
    assert [c.experiment.sae.variant for c in load(tmp_path).cells] == ["topk", "sae_lens_standard"]  # type: ignore[union-attr]
    assert load(tmp_path).cells[0].label == 'sae={"k":1,"variant":"topk","width":8}'


def test_null_clears_what_a_case_inherits_and_is_a_value_where_a_setting_says_so(tmp_path: Path) -> None:
    extra = "cases:\n  - {label: a}\n  - {label: b, dataset: {eval: {lab: null}}, layer: null, layers: [0]}\n"
    write(tmp_path, s=PLAIN + extra + "training: {gradient_clip: null}\n")
    first, second = (cell.experiment for cell in load(tmp_path).cells)
    assert first.training.gradient_clip is second.training.gradient_clip is None
    assert set(first.dataset.eval) - set(second.dataset.eval) == {"lab"}
    assert second.layer is None


def test_labels_say_true_and_null_as_specs_do(tmp_path: Path) -> None:
    extra = "matrix: {training.normalise: [true, false], training.gradient_clip: [1.0, null]}\n"
    write(tmp_path, s=PLAIN + extra)
    first, *_, last = load(tmp_path).cells
    assert first.label == "training.normalise=true,training.gradient_clip=1.0"
    assert last.label == "training.normalise=false,training.gradient_clip=null"
    assert last.experiment.training.gradient_clip is None


def test_a_label_is_one_printable_line(tmp_path: Path) -> None:
    write(tmp_path, s=PLAIN + 'matrix: {dataset.train.field: ["a\\e[2J\\nb\\x9b", c]}\n')
    for cell in load(tmp_path).cells:
        assert one_line(cell.title) == cell.title


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("seeds: [1, 1]", "9:12: seeds[1]: the seed 1 stands here twice"),
        ("seeds: []", "9:8: seeds: tuple should have at least 1 item"),
        ("seeds: [-1]", "9:9: seeds[0]: input should be greater than or equal to 0"),
        ("seeds: [true]", "9:9: seeds[0]: must be a whole number"),
        ("matrix: {sae.k: [1, 2, 1]}", "9:24: matrix.sae.k[2]: this value stands here twice"),
        ("matrix: {sae.k: []}", "9:17: matrix.sae.k: tuple should have at least 1 item"),
        ("matrix: {sae.k: 3}", "9:17: matrix.sae.k: must be a list"),
        ("matrix: {seeds: [1]}", "9:17: matrix.seeds: 'seeds' is not a dotted path into the experiment"),
        ("matrix: {sae..k: [1]}", "'sae..k' is not a dotted path"),
        ("matrix: {'': [1]}", "'' is not a dotted path"),
        ("matrix: {sae.kk: [1]}", "9:19: sae.kk: unknown key 'kk' (did you mean 'k'?)"),
        ("matrix: {nothing: [1]}", "nothing: unknown key 'nothing'"),
        ("matrix: {sae.k.x: [1]}", "sae.k: must be a whole number"),
        ("matrix: {sae.k: [many]}", "9:18: sae.k: must be a whole number, not 'many'"),
        ("cases: [{sae: {k: 1}}]", "9:9: cases[0]: every case needs a `label`"),
        ("cases: [{label: 'a b'}]", "9:17: cases[0].label: every case needs a `label`"),
        ('cases: [{label: "a\\n"}]', "every case needs a `label`"),
        ("cases: [{label: a}, {label: a}]", "9:29: cases[1].label: the label 'a' stands here twice"),
        ("cases: [{label: a, seeds: [1]}]", "9:27: cases[0].seeds: a case cannot change 'seeds'"),
        ("cases: [3]", "9:9: cases[0]: must be a map of keys to values"),
        ("cases: {label: a}", "9:8: cases: must be a list"),
        ("schema: 2", "9:9: schema: must be 1, not 2"),
        ("name: ../x", "9:7: name: "),
        ("name: 'a b'", "9:7: name: "),
        ("description: [a]", "9:14: description: must be text"),
        (
            "seeds: [0, 1, 2, 3]\nmatrix: {sae.k: " + str([*range(1, 60)]) + ", layer: " + str([*range(60)]) + "}",
            "14,160 cells in one spec",
        ),
    ],
)
def test_what_multiplies_cells_is_checked(tmp_path: Path, extra: str, expected: str) -> None:
    write(tmp_path, s=PLAIN + extra + "\n")
    assert expected in "\n".join(said(tmp_path))


def test_header_and_body_problems_are_told_together(tmp_path: Path) -> None:
    write(tmp_path, s=PLAIN.replace("k: 4", "k: x") + "seeds: [0, 0]\ncases: [1]\n")
    found = "\n".join(said(tmp_path))
    assert "7:36: sae.k" in found
    assert "cases[0]: must be a map" in found


@pytest.mark.parametrize("name", ["a b", ".hidden", "-x", "ü", "a\nb", "x" * 121, "a\x1b[31m"])
def test_a_file_name_that_is_no_name_must_be_given_one(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{name: PLAIN})
    (problem,) = said(tmp_path, name)
    assert "or set `name:`" in problem
    assert one_line(problem) == problem
    write(tmp_path, **{name: PLAIN + "name: fine\n"})
    assert load(tmp_path, name).origin.name == "fine"


def test_a_missing_section_and_an_unknown_one_are_both_told(tmp_path: Path) -> None:
    write(tmp_path, s=PLAIN.replace("metrics:", "metric:"))
    first, second = said(tmp_path)
    assert first == "s.yaml:1:1: metrics: is required"
    assert second.endswith(": metric: unknown key 'metric' (did you mean 'metrics'?)")


def test_numbers_may_be_written_in_any_way_that_means_the_same(tmp_path: Path) -> None:
    write(
        tmp_path, s=PLAIN + "training: {lr: 1}\n", t=PLAIN + "training: {lr: 1.0}\n", u=PLAIN + "training: {lr: 1e0}\n"
    )
    same = [load(tmp_path, name).cells[0].experiment.plain() for name in "stu"]
    assert same[0] == same[1] == same[2]
    assert type(same[0]["training"]["lr"]) is float


TREE = yaml.safe_load(PLAIN + "seeds: [0, 1]\nmatrix: {sae.k: [1, 2]}\ncases: [{label: a, sae: {width: 9}}]\n")
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(
        st.sampled_from(["adapter", "variant", "load", "k", "label", "x"]),
        st.text(max_size=3) | st.integers(),
        max_size=2,
    ),
)


def places(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way, *(place for key, child in inner for place in places(child, (*way, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The valid tree with one to three values replaced, removed or added."""
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(tree)[1:]))
        holder = tree
        for step in way:
            holder = holder[step]
        action = draw(st.sampled_from(["replace", "remove", "rename"]))
        if action == "replace":
            holder[last] = draw(junk)
        elif action == "remove" or isinstance(holder, list):
            del holder[last]
        else:
            holder[draw(st.text(max_size=5))] = holder.pop(last)
        if not isinstance(tree, dict) or len(places(tree)) < 2:
            break
    return tree


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=mutated())
def test_a_mutated_spec_is_valid_or_gives_a_located_spec_error(tmp_path: Path, tree: Any) -> None:
    (tmp_path / "specs").mkdir(exist_ok=True)
    path = tmp_path / "specs/s.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), "utf-8", errors="surrogatepass")
    try:
        assert load_spec(path, tmp_path).cells
    except SpecError as error:  # the other of two outcomes that are right
        assert all(p.file == "specs/s.yaml" and p.line >= 1 and p.message for p in error.problems)  # noqa: PT017


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(list(TREE)), inner=st.permutations(list(TREE["sae"])))
def test_the_order_of_keys_changes_no_cell(tmp_path: Path, order: list[str], inner: list[str]) -> None:
    write(tmp_path, a=yaml.safe_dump(TREE, sort_keys=False))
    shuffled = {key: TREE[key] for key in order} | {"sae": {key: TREE["sae"][key] for key in inner}}
    write(tmp_path, b=yaml.safe_dump({key: shuffled[key] for key in order}, sort_keys=False))
    a, b = load(tmp_path, "a"), load(tmp_path, "b")
    assert a.origin.digest == b.origin.digest
    assert [(c.label, c.seed, c.experiment) for c in a.cells] == [(c.label, c.seed, c.experiment) for c in b.cells]
