"""The steering method of the contributors' page, installed as written; and one that leaves what cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import furnish
from tests.support.project import Workbench

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
RUN = ("run", "mine", "--executor", "inline")


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Workbench:
    """A project whose spec steers with the method of the page, and the method as pip would leave it."""
    package = tmp_path / "package"
    (code,) = re.findall(r"```python\n# mine/method\.py\n(.*?)```", PAGE, re.DOTALL)
    for name, content in {
        "mine/__init__.py": "",
        "mine/method.py": code,
        "mine-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n",
        "mine-1.0.dist-info/entry_points.txt": "[latentbench.methods]\nupward = mine.method:UpwardMethod\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    made = Workbench(furnish(tmp_path / "project", tiny_model).root, (package,))
    made.write(
        "specs/mine.yaml",
        "model: {adapter: transformers, id: ./model}\n"
        "dataset: {eval: {lab: {adapter: files, path: data/eval.jsonl, documents: 6, context: 16}}}\n"
        "steering: {method: upward, scale: 4.0}\n"
        "metrics: [capability_cost: {scales: [0]}]\n",
    )
    return made


def replaced(bench: Workbench, old: str, new: str) -> None:
    path = bench.python_path[0] / "mine/method.py"
    code = path.read_text()
    assert old in code
    path.write_text(code.replace(old, new))


def test_a_method_of_ones_own_steers(bench: Workbench) -> None:
    done = bench.process(*RUN)
    assert done.code == 0, done.err
    (record,) = bench.records().values()
    found = {m.params.get("scale"): m.value for m in record.metrics if m.id == "capability_cost.kl"}
    assert found[0] == 0
    assert (found[None] or 0) > 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("Content({'upward': torch.ones(8)})", "left a tensor 'upward'; what `content_of(vectors)` makes is expected"),
        ("{0: torch.ones(8)}", "came as dict; `make` must return a Content"),
        ("content_of({0: torch.full((8,), float('nan'))})", "hold NaN or infinity"),
    ],
)
def test_what_cannot_be_used_is_not_stored(bench: Workbench, wrong: str, says: str) -> None:
    right = "content_of({layer: torch.ones(width_of(model.model)) for layer in layers_of(self, model)})"
    replaced(bench, right, wrong)
    assert bench.process(*RUN).code == 3
    (record,) = bench.records().values()
    assert record.error is not None
    assert says in record.error.message
    replaced(bench, wrong, right)
    assert bench.process(*RUN).code == 0
