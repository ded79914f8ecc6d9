"""What a start of the command line shares and leaves out; how long it takes is measured by `latentbench bench startup`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentbench.bench import startup
from latentbench.cli.app import run
from latentbench.plan.plan import make_plan
from latentbench.plan.stages import StageMaker, cell_key, stage_keys, stages_of
from latentbench.spec.checks import check
from latentbench.spec.project import Project, find_project, load_specs
from latentbench.store.store import Store
from latentbench_adapters.pocket.adapter import PocketText

HEAVY = ("torch", "transformers", "pandas", "scipy", "sqlite3", "asyncio", "jinja2", "lm_eval", "datasets", "networkx")


@pytest.fixture
def generated(tmp_path: Path) -> Project:
    startup.generate(tmp_path, 6)
    return find_project(start=tmp_path)


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_reading_specs_imports_nothing_heavy(verb: str, generated: Project) -> None:
    code = (
        "import sys\nfrom latentbench.cli.app import run\n"
        f"assert run(['{verb}']) == 0\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    paths = [str(Path(__file__).parents[2] / name) for name in ("harness", "adapters")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=generated.root, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_generated_specs_are_valid_and_no_two_cells_want_the_same(generated: Project) -> None:
    specs = load_specs(generated, [])
    assert [len(spec.cells) for spec in specs] == [startup.CELLS] * 6
    planned = make_plan(specs, Store(generated.store), generated.results, generated.roots)
    assert len({item.key for item in planned.cells}) == 6 * startup.CELLS


def test_stages_made_together_are_those_made_alone(generated: Project) -> None:
    maker, roots = StageMaker(generated.roots), generated.roots
    for spec in load_specs(generated, []):
        for cell in spec.cells:
            together, alone = maker.of(cell), stages_of(cell, roots)
            assert [(s.kind, s.title, s.made_from) for s in together.all()] == [
                (s.kind, s.title, s.made_from) for s in alone.all()
            ]
            assert (stage_keys(together), cell_key(cell, together)) == (stage_keys(alone), cell_key(cell, alone))


def test_what_cells_share_is_one_stage(generated: Project) -> None:
    (spec, *_) = load_specs(generated, [])
    maker = StageMaker(generated.roots)
    made = [maker.of(cell) for cell in spec.cells]
    assert len({id(stages.domains["general"].baseline) for stages in made}) == 1
    assert len({id(sae.tokens) for stages in made for sae in stages.saes}) == 1
    assert len({id(sae.stage) for stages in made for sae in stages.saes}) == len(made)


def test_sections_are_shared_only_where_they_are_written_alike(tmp_path: Path) -> None:
    startup.generate(tmp_path, 1)
    spec = tmp_path / "specs/generated/0000.yaml"
    text = spec.read_text("utf-8").replace("matrix: {sae.k: [8, 16, 24, 32, 48]}", "sae: {k: 8}").split("cases:")[0]
    text = text.replace("sae: {width: 257}\n", "").replace("sae: {k: 8}", "sae: {variant: topk, width: 257, k: 8}")
    cases = "cases:\n  - {label: a}\n  - {label: b}\n  - {label: c, dataset: {train: {documents: 500}}}\n"
    spec.write_text(text + cases, "utf-8")
    (loaded,) = load_specs(find_project(start=tmp_path), [])
    one, same, other = (cell.experiment for cell in loaded.cells if cell.seed == 0)
    assert one is not same
    assert one.dataset is same.dataset
    assert one.dataset is not other.dataset
    assert one.model is other.model


def test_an_identity_is_asked_for_once_for_all_cells(generated: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec, *_) = load_specs(generated, [])
    model, asked = type(spec.cells[0].experiment.model), []
    identity = model.identity
    monkeypatch.setattr(model, "identity", lambda self, roots: asked.append(1) or identity(self, roots))
    maker = StageMaker(generated.roots)
    for cell in spec.cells:
        maker.of(cell)
    assert len(asked) == 1


def test_the_times_of_a_start_are_the_best_of_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([(0.3, 0.9), (0.2, 1.0)] * 5 + [(0.2, 0.9)])
    monkeypatch.setattr(startup, "_started", lambda command, folder: next(times))
    assert run(["bench", "startup", "--specs", "3", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["commands"]
    assert [(item["command"], item["specs"]) for item in found] == [
        ("--help", None),
        ("validate", None),
        ("plan", None),
        ("validate", 3),
        ("plan", 3),
        ("doctor", None),
    ]
    assert {(item["user_seconds"], item["wall_seconds"]) for item in found} == {(0.2, 0.9)}


def test_a_command_that_fails_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/broken.yaml").write_text("sae: 1\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup, "_best", lambda command, *rest: startup._started(command, tmp_path))
    assert run(["bench", "startup", "--specs", "1", "--rounds", "1"]) == 2


def test_models_and_texts_are_asked_for_their_files_once_a_spec(
    generated: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec, *_) = load_specs(generated, [])
    asked: list[object] = []
    for kind, name in ((type(spec.cells[0].experiment.model), "facts"), (PocketText, "identity")):
        real = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, roots, real=real: (asked.append(self), real(self, roots))[1])
    assert check(spec, generated.roots) == []
    assert len(asked) == len({id(section) for section in asked}) < len(spec.cells)
