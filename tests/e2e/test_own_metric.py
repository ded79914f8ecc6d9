"""The metric of the contributors' page with a statistic of its own, installed as written; and statistics that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from latentbench.store.files import read_arrays
from tests.conftest import furnish
from tests.support.project import Workbench, random_words, write_jsonl

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Workbench:
    """A project with twelve documents, and the metric as pip would leave it."""
    package = tmp_path / "package"
    code = dict(re.findall(r"```python\n# (mine/(?:metric|statistic)\.py)\n(.*?)```", PAGE, re.DOTALL))
    assert set(code) == {"mine/metric.py", "mine/statistic.py"}
    for name, content in {
        "mine/__init__.py": "",
        **code,
        "mine-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n",
        "mine-1.0.dist-info/entry_points.txt": "[latentbench.metrics]\nworse_than_mean = mine.metric:WorseThanMean\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content, "utf-8")
    made = Workbench(furnish(tmp_path / "project", tiny_model).root, (package,))
    write_jsonl(made.root / "data/eval.jsonl", random_words(12))
    return made


def spec(bench: Workbench, name: str, k: int, *metrics: object) -> None:
    bench.spec(name, sae__k=k, dataset__eval__lab__documents=12, metrics=list(metrics))


def replaced(bench: Workbench, file: str, old: str, new: str) -> None:
    path = bench.python_path[0] / "mine" / file
    code = path.read_text("utf-8")
    assert old in code
    path.write_text(code.replace(old, new), "utf-8")


def test_a_metric_of_ones_own_gets_an_interval_budgets_and_a_paired_test(bench: Workbench) -> None:
    spec(bench, "one", 1, {"worse_than_mean": {}}, "explained_variance")
    spec(bench, "four", 4, {"worse_than_mean": {"budgets": [2]}}, "explained_variance")
    done = bench.process("run", "--executor", "inline")
    assert done.code == 0, done.err
    records = bench.records()
    for name, budgets in (("one[][0]", {None}), ("four[][0]", {None, 2})):
        own = {value.budget: value for value in records[name].metrics if value.id == "worse_than_mean"}
        assert own.keys() == budgets
        for budget, value in own.items():
            assert value.n == 12
            assert value.value is not None
            assert value.ci is not None
            assert value.ci.low <= value.value <= value.ci.high
            documents = records[name].documents
            assert documents is not None
            (file,) = (bench.root / "results/records").rglob(documents.file)
            arrays = read_arrays(file)
            kept = arrays["lab/worse_than_mean.tokens" + ("" if budget is None else f"@{budget}")]
            assert kept.sum() / arrays["lab/tokens"].sum() == value.value
            assert np.array_equal(kept, kept.round())
    compared = bench.process("compare", "one[][0]", "four[][0]", "--format", "json")
    assert compared.code == 0, compared.err
    changes = {(found["metric"], found["budget"]): found for found in json.loads(compared.out)["metrics"]}
    change = changes["worse_than_mean", None]
    assert change["difference"] is not None
    assert 0 < change["p"] <= 1


def test_a_statistic_that_cannot_be_used_costs_the_cells_that_ask_for_it(bench: Workbench) -> None:
    spec(bench, "own", 4, "worse_than_mean")
    spec(bench, "plain", 4, "explained_variance")
    replaced(bench, "statistic.py", "batch.squared_error >", "batch.squared_error.sum() + 0 *")
    replaced(bench, "statistic.py", ".square().sum(-1)", ".square()")
    assert bench.process("run", "--executor", "inline").code == 3
    records = bench.records()
    error = records["own[][0]"].error
    assert error is not None
    assert "the statistic 'worse_than_mean.tokens' (mine.statistic:worse) gave a tensor [" in error.message
    assert "it must give one real number for each token" in error.message
    assert records["plain[][0]"].status == "ok"


def test_a_statistic_of_another_name_is_refused_where_the_spec_names_the_metric(bench: Workbench) -> None:
    spec(bench, "own", 4, "explained_variance", "worse_than_mean")
    replaced(bench, "metric.py", '"worse_than_mean.tokens"', '"squared_error"')
    done = bench.process("validate", "own")
    assert done.code == 2
    assert "its statistic 'squared_error' must be called `worse_than_mean.…`" in " ".join(done.err.split())
