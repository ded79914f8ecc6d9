"""Keys say what determines the numbers, no more and no less. A golden key that changes is a decision, not an accident."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from latentbench.core.hashing import canonical, digest, file_digest, seed_of
from latentbench.core.paths import Roots
from latentbench.plan.stages import cell_key, stage_keys, stages_of
from latentbench.spec.cells import load_spec
from latentbench_adapters.datasets import FilesDataset
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.project import merged
from tests.support.specs import PLAIN

ROOTS = Roots(Path("/nowhere"))
BASE = yaml.safe_load(PLAIN)


@pytest.fixture(autouse=True)
def _fixed_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that never changes: a model and files that exist only in name."""
    monkeypatch.setattr(TransformersModel, "identity", lambda self, roots: {"hub": "model", "dtype": self.dtype})
    monkeypatch.setattr(
        FilesDataset, "identity", lambda self, roots: {"files": [Path(self.path).stem], "field": self.field}
    )


def keys(root: Path, changes: dict[str, Any] | None = None, name: str = "s", index: int = 0) -> dict[str, str]:
    path = root / "specs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(merged(BASE, changes or {}), sort_keys=False), "utf-8")
    cell = load_spec(path, root).cells[index]
    stages = stages_of(cell, ROOTS)
    return {**stage_keys(stages), "cell": cell_key(cell, stages)}


GOLDEN = {
    "sae": "c296b446f0c60883",
    "train_tokens": "1f8bb325122286a4",
    "lab/tokens": "baab655b9ac3b694",
    "lab/baseline": "f83f064af7a60018",
    "lab/measurement": "b62e87af54cbda10",
    "cell": "e3392e11e8134d3c",
}


def test_golden_keys(tmp_path: Path) -> None:
    assert {name: key[:16] for name, key in keys(tmp_path).items()} == GOLDEN


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": {"gpus": 1, "cpus": 3, "timeout": "2h", "memory": "8GiB"}},
        {"description": "other words"},
        {"name": "another/name"},
        {"matrix": {"sae.k": [4]}},
        {"cases": [{"label": "x"}]},
        {"model.id": "./elsewhere"},
        {"dataset.train.path": "other/folder/a.jsonl"},
        {"sae.aux_k": None},
        {"training.lr": 8e-4},
        {"training.devices": 2},
    ],
    ids=str,
)
def test_labels_names_paths_and_resources_move_no_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert keys(tmp_path, changes, "other/place") == keys(tmp_path)


def test_the_name_of_an_evaluation_domain_moves_no_key(tmp_path: Path) -> None:
    renamed = keys(tmp_path, {"dataset.eval": {"hall": BASE["dataset"]["eval"]["lab"]}})
    assert renamed["hall/measurement"] == keys(tmp_path)["lab/measurement"]


EVERYTHING = {"sae", "train_tokens", "lab/tokens", "lab/baseline", "lab/measurement", "cell"}
EVALUATION = {"lab/tokens", "lab/baseline", "lab/measurement", "cell"}
TRAINED = {"sae", "lab/measurement", "cell"}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"seeds": [1]}, TRAINED),
        ({"sae.k": 5}, TRAINED),
        ({"sae.width": 128}, TRAINED),
        ({"training.lr": 1e-3}, TRAINED),
        ({"training.buffer": 99_999}, TRAINED),
        ({"dataset.train.tokens": 1001}, TRAINED | {"train_tokens"}),
        ({"dataset.train.context": 32}, TRAINED | {"train_tokens"}),
        ({"dataset.train.path": "c.jsonl"}, TRAINED | {"train_tokens"}),
        ({"dataset.train.skip": 1}, TRAINED | {"train_tokens"}),
        ({"dataset.train.repeat": True}, TRAINED | {"train_tokens"}),
        ({"dataset.eval.lab.context": 32}, EVALUATION),
        ({"dataset.eval.lab.documents": 9}, EVALUATION),
        ({"dataset.eval.lab.field": "body"}, EVALUATION),
        ({"layer": 0}, TRAINED | {"lab/baseline"}),
        ({"layer": {"index": 1, "point": "mlp_out"}}, TRAINED | {"lab/baseline"}),
        ({"model.dtype": "float16"}, EVERYTHING),
        ({"metrics": ["explained_variance", "cross_entropy"]}, {"cell"}),
        ({"metrics": ["explained_variance"]}, {"lab/baseline", "lab/measurement", "cell"}),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),  # the same in every process
)
def test_what_changes_the_numbers_moves_exactly_the_keys_below_it(
    tmp_path: Path, changes: dict[str, Any], moved: set[str]
) -> None:
    before, after = keys(tmp_path), keys(tmp_path, changes)
    assert {name for name in before if before[name] != after[name]} == moved


def test_a_budget_adds_a_measurement_and_moves_no_other(tmp_path: Path) -> None:
    before = keys(tmp_path)
    after = keys(tmp_path, {"metrics": [{"cross_entropy": {"budgets": [2]}}]})
    assert after.keys() - before.keys() == {"lab/measurement@2"}
    assert {name for name in before if before[name] != after[name]} == {"cell"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "ü"]}, '{"a":[true,null,"ü"],"b":1}'),
        ([0.1, 1e-05, 1e22, -0.5, 1.0], "[0.1,1e-05,1e+22,-0.5,1.0]"),
        ({"é": "\n\u2028"}, '{"é":"\\n\u2028"}'),
        (10**30, "1" + "0" * 30),
    ],
)
def test_canonical_json_never_changes(value: Any, text: str) -> None:
    assert canonical(value) == text


def test_golden_digests() -> None:
    assert digest("sae", {"k": 4, "lr": 1e-4}).startswith("c46573a881e31759")
    assert seed_of("order", "abc", 0) == 305370664186631847


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_canonical_json_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_the_order_of_keys_changes_no_digest(value: Any) -> None:
    assert digest("x", value) == digest("x", reversed_keys(value))


@given(json_values, json_values)
def test_different_values_have_different_canonical_text(a: Any, b: Any) -> None:
    if canonical(a) == canonical(b):
        assert repr(reversed_keys(a)) == repr(reversed_keys(b)) or a == b


@given(st.text(min_size=1), st.text(min_size=1), json_values)
def test_kinds_keep_equal_payloads_apart(one: str, other: str, value: Any) -> None:
    if one != other:
        assert digest(one, value) != digest(other, value)


@given(st.lists(st.integers(), max_size=3))
def test_seeds_fit_where_generators_take_them(parts: list[int]) -> None:
    assert 0 <= seed_of(*parts) < 2**63


def chunks() -> Iterator[bytes]:
    yield from (b"", b"x", b"y" * ((1 << 20) + 1))


@pytest.mark.parametrize("content", list(chunks()), ids=len)
def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path, content: bytes) -> None:
    import hashlib

    (tmp_path / "f").write_bytes(content)
    assert file_digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()
