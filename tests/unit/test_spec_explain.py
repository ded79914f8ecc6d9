"""Every problem says where it was written, what is wrong and what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbench.core.validation_errors import suggestion
from tests.support.specs import PLAIN, said, write

SWAPS = [
    ("layer: 1", "layer: one", "2:8: layer: must be a map of keys to values"),
    (
        "layer: 1",
        "layer: {index: 1, point: middle}",
        "2:26: layer.point: must be 'resid_pre', 'resid_post', 'mlp_out', 'attn_out' or 'mlp'",
    ),
    ("layer: 1", "layer: true", "layer: must be a map"),
    ("layer: 1", "layer: -1001", "2:8: layer: input should be greater than or equal to -1000"),
    (
        "adapter: transformers",
        "adapter: transformer",
        "1:8: model: unknown adapter 'transformer' (did you mean 'transformers'?)",
    ),
    ("adapter: transformers, ", "", "1:8: model: say which adapter: one of package, pocket, transformers"),
    ("adapter: transformers", "adapter: [transformers]", "1:8: model: "),
    ("adapter: transformers", "adapter: 3", "1:8: model: "),
    ("adapter: transformers", "adapter: null", "1:8: model: say which adapter"),
    ("adapter: transformers", "adapter: {a: b}", "1:8: model: "),
    ("id: ./model", "id: ./model, dtpe: float32", "1:45: model.dtpe: unknown key 'dtpe' (did you mean 'dtype'?)"),
    ("id: ./model", "id: ./model, dtype: float8", "1:52: model.dtype: string should match pattern"),
    ("id: ./model", "id: 'a b'", "1:8: model: 'a b' is neither a hub id (owner/name) nor a path"),
    ("id: ./model", 'id: "a/b\\n"', "is neither a hub id"),
    ("id: ./model", "id: a/b, revision: ../../../x", "1:8: model: the revision '../../../x' is no commit"),
    ("variant: topk", "variant: topq", "7:6: sae: unknown variant or load 'topq' (did you mean 'topk'?)"),
    ("variant: topk, ", "", "7:6: sae: say which variant or load: one of "),
    ("k: 4}", "k: 4.5}", "7:36: sae.k: must be a whole number, not '4.5'"),
    ("k: 4}", "k: '4'}", "7:36: sae.k: must be a whole number, not '4'"),
    ("k: 4}", "k: 65}", "7:6: sae: k = 65 active latents cannot exceed the dictionary width 64"),
    ("k: 4}", "k: 0}", "7:36: sae.k: input should be greater than 0"),
    (", k: 4}", "}", "7:6: sae.k: is required"),
    ("{variant: topk, width: 64, k: 4}", "topk", "7:6: sae: "),
    (
        "{variant: topk, width: 64, k: 4}",
        "{load: {adapter: sae_lens}}",
        "sae.load: give either `release` and `id`, or `path`",
    ),
    ("{variant: topk, width: 64, k: 4}", "{load: x}", "sae.load: must be a map"),
    ("{variant: topk, width: 64, k: 4}", "{load: {adapter: sae_lens, path: x}, k: 3}", "sae.k: unknown key 'k'"),
    (
        "[cross_entropy]",
        "[cross_entropi]",
        "8:11: metrics[0]: unknown metric 'cross_entropi' (did you mean 'cross_entropy'?)",
    ),
    (
        "[cross_entropy]",
        "[cross_entropy: {budget: [1]}]",
        "metrics[0].cross_entropy.budget: unknown key 'budget' (did you mean 'budgets'?)",
    ),
    ("[cross_entropy]", "[cross_entropy: 3]", "8:11: metrics[0]: say which metric: one of "),
    ("[cross_entropy]", "[[cross_entropy]]", "8:11: metrics[0]: "),
    (
        "[cross_entropy]",
        "[cross_entropy: {budgets: [2, x]}]",
        "8:40: metrics[0].cross_entropy.budgets[1]: must be a whole number, not 'x'",
    ),
    ("[cross_entropy]", "[]", "8:10: metrics: tuple should have at least 1 item"),
    ("[cross_entropy]", "cross_entropy", "8:10: metrics: must be a list"),
    ("    lab: {", "    'l ab': {", "dataset.eval"),
    (
        "documents: 8",
        "documents: 8, context: 1",
        "6:65: dataset.eval.lab.context: input should be greater than or equal to 2",
    ),
    ("documents: 8", "documents: " + "9" * 200, "dataset.eval.lab.documents"),
    ("tokens: 1000", "tokens: true", "4:50: dataset.train.tokens: must be a whole number"),
]


@pytest.mark.parametrize(("old", "new", "expected"), SWAPS, ids=[new for _, new, _ in SWAPS])
def test_a_wrong_value_is_explained_where_it_stands(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert PLAIN.count(old) == 1
    write(tmp_path, s=PLAIN.replace(old, new))
    (problem,) = said(tmp_path)
    assert expected in problem


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = PLAIN.replace("layer: 1", "layr: 1").replace("k: 4", "k: x").replace("[cross_entropy]", "[mse, mze]")
    write(tmp_path, s=text + "training: {lr: -1, betas: [1, 2]}\n")
    assert [line.split(": ")[1] for line in said(tmp_path)] == [
        "layr",
        "sae.k",
        "metrics[1]",
        "training.lr",
        "training.betas[0]",
        "training.betas[1]",
    ]


def test_an_inherited_problem_is_told_where_the_parent_wrote_it(tmp_path: Path) -> None:
    write(tmp_path, _base__p=PLAIN.replace("k: 4", "k: x"), s="extends: _base/p.yaml\nsae:\n  width: y\n")
    assert said(tmp_path) == [
        "_base/p.yaml:7:36: sae.k: must be a whole number, not 'x'",
        "s.yaml:3:10: sae.width: must be a whole number, not 'y'",
    ]


def test_a_matrix_problem_is_told_at_the_value_that_causes_it(tmp_path: Path) -> None:
    write(tmp_path, s=PLAIN + "matrix:\n  sae.k:\n    - 4\n    - 400\n")
    (problem,) = said(tmp_path)
    assert "k = 400 active latents cannot exceed the dictionary width 64" in problem


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202eb", "a\x9bb", "a\x00b"])
def test_hostile_keys_and_values_are_shown_escaped_on_one_line(tmp_path: Path, name: str) -> None:
    quoted = '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'
    write(tmp_path, s=PLAIN + f"{quoted}: 1\n", t=PLAIN.replace("variant: topk", f"variant: {quoted}"))
    for spec in "st":
        (problem,) = said(tmp_path, spec)
        assert problem.isprintable()


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("topkk", ["topk", "gated"], " (did you mean 'topk'?)"),
        ("zzz", ["b", "a", "a"], " (known: a, b)"),
        ("zzz", map(str, range(50)), ""),
        ("zzz", [], ""),
    ],
)
def test_suggestions_name_the_nearest_word_or_the_few_there_are(word: str, known: list[str], expected: str) -> None:
    assert suggestion(word, known) == expected
