"""What the pages show is executed: their plug-ins are installed as written and a spec runs with all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import furnish
from tests.support.project import Workbench, documents

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text("utf-8")
EXTENDING = (ROOT / "docs/extending.md").read_text("utf-8")


def installed(folder: Path) -> Path:
    """The page's package with its entry points, as pip would leave it."""
    blocks = dict(re.findall(r"```python\n# (mine/\w+\.py)\n(.*?)```", EXTENDING, re.DOTALL))
    assert len(blocks) == 4
    for name, code in blocks.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(code, "utf-8")
    (folder / "mine/__init__.py").touch()
    (points,) = re.findall(r"```toml\n# pyproject\.toml\n(.*?)```", EXTENDING, re.DOTALL)
    information = folder / "mine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    plain = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", points).replace('"', "")
    (information / "entry_points.txt").write_text(plain)
    return folder


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Workbench:
    made = furnish(tmp_path / "project", tiny_model)
    return Workbench(made.root, (installed(tmp_path / "package"),))


def test_a_variant_a_metric_and_an_adapter_of_ones_own(bench: Workbench) -> None:
    bench.write("data/all.txt", ". ".join(documents(6, start=900)))
    bench.spec(
        "mine",
        sae={"variant": "tied_topk", "width": 32, "k": 4},
        metrics=[{"explained_variance": {"estimators": ["uncentred"]}}, {"normalised_mse": {"budgets": [2]}}],
        dataset__eval={"all": {"adapter": "sentences", "path": "data/all.txt", "documents": 6, "context": 16}},
    )
    assert bench.process("validate").code == 0
    done = bench.process("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    (record,) = bench.records().values()
    found = {(m.id, m.params.get("budget")): m for m in record.metrics}
    assert found["normalised_mse", 2].value is not None
    assert found["normalised_mse", None].n == 6
    uncentred = found["explained_variance.uncentred", None].value
    assert found["normalised_mse", None].value == pytest.approx(1 - uncentred, abs=1e-12)
    assert "normalised_mse" in bench.process("leaderboard", "--format", "json").out
    assert "tied_topk" in bench.process("list", "variants").out


def test_every_dependency_has_a_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = [name for names in project["optional-dependencies"].values() for name in names]
    wanted = {re.match(r"[A-Za-z0-9-]+", text)[0].lower() for text in [*project["dependencies"], *optional]}  # type: ignore[index]
    section = (ROOT / "docs/dependencies.md").read_text("utf-8").lower()
    missing = {
        n for n in wanted if not re.search(rf"\b{re.escape(n)}\b", section) and "stubs" not in n and "types-" not in n
    }
    assert missing == set()


def test_the_picture_is_small_and_there() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert 10_000 < (ROOT / path).stat().st_size <= 200_000


def test_the_counts_on_the_page_are_those_of_the_code() -> None:
    from latentbench.core.plugins import plugins

    (stated,) = set(re.findall(r"(\d+) variants and controls", PAGE + (ROOT / "docs/tools.md").read_text("utf-8")))
    assert int(stated) == len(plugins("variants"))
