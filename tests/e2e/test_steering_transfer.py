"""Vectors of another cell: a stage above the cell's own, made once for both, of another model, seed or block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentbench.activations.capture import hidden_states
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.plan.plan import Plan, make_plan
from latentbench.spec.project import load_specs
from latentbench.steering.build import residual_norms
from latentbench.store.store import Store
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.project import EXPERIMENT, Workbench, documents, merged
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = {"positive": ["ore salt acid", "gas metal"], "negative": ["water heat", "glass flask stir"]}
SOURCE: dict[str, Any] = {"method": "contrastive", **PAIRS, "layers": 0}
OTHER: dict[str, Any] = {"adapter": "transformers", "id": "./other"}
HOME: dict[str, Any] = {"method": "transfer", "vectors": SOURCE, "model": OTHER, "layers": 1}
AGREEMENT = {"problems_from": {"adapter": "files", "path": "data/problems.jsonl"}, "prompts": 4, "new_tokens": 5}


def furnished(bench: Workbench, steering: dict[str, Any], metrics: Any = ("steering_dose",), **changes: Any) -> None:
    """A spec without an SAE, and a second model of the same family."""
    save_tiny_model(bench.root / "other", seed=1)
    rows = [json.dumps({"question": text, "answer": "x"}) for text in documents(4, start=900, length=6)]
    bench.write("data/problems.jsonl", "\n".join(rows))
    without = {"sae": None, "training": None, "layer": None, "dataset.train": None}
    spec = merged(EXPERIMENT, {**without, "steering": steering, "metrics": list(metrics), **changes})
    bench.write("specs/mine.yaml", yaml.safe_dump({k: v for k, v in spec.items() if v is not None}, sort_keys=False))


def planned(bench: Workbench) -> Plan:
    project = bench.project
    specs = load_specs(project, [str(bench.root / "specs/mine.yaml")])
    return make_plan(specs, Store(project.store), project.results, project.roots)


def test_what_makes_the_vectors_is_the_stage_of_the_cell_that_steers_by_them(bench: Workbench) -> None:
    cases = [
        {"label": "home", "model": OTHER, "steering": SOURCE},
        {"label": "moved", "steering": HOME},
        {"label": "stronger", "steering": {**HOME, "scale": 2.0}},
        {"label": "rescaled", "steering": {**HOME, "rescale": "norms"}},
        {"label": "of-seed-3", "steering": {**HOME, "seed": 3}},
        {"label": "own", "steering": {**HOME, "model": {"adapter": "transformers", "id": "./model"}}},
    ]
    furnished(bench, {"method": "none"}, cases=cases)
    stages = {item.cell.label: item.stages for item in planned(bench).cells}
    home, moved = stages["home"], stages["moved"]
    assert home.origin is None
    assert moved.origin is not None
    assert moved.subject is not None
    assert moved.origin.subject.key == home.subject.key  # type: ignore[union-attr]
    order = [stage.key for stage in moved.all()]
    assert order.index(moved.origin.subject.key) < order.index(moved.subject.key)
    assert stages["stronger"].subject == moved.subject
    origins = {label: made.origin.subject.key for label, made in stages.items() if made.origin}
    assert origins["rescaled"] == origins["moved"]
    assert len({origins[label] for label in ("moved", "of-seed-3", "own")}) == 3
    assert len({made.subject.key for made in stages.values() if made.subject}) == 5


def test_vectors_of_another_model_are_added_at_another_block_as_long_as_norms_say(
    bench: Workbench, command: Callable[..., Any]
) -> None:
    metrics = ["steering_dose", {"transfer_agreement": AGREEMENT}]
    furnished(bench, {**HOME, "rescale": "norms"}, metrics)
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    (record,) = bench.records().values()
    roots, cpu = Roots(bench.root), torch.device("cpu")
    here, home = (TransformersModel(id=f"./{name}").load(roots, cpu) for name in ("model", "other"))
    texts = documents(6, start=500)

    def state(text: str) -> torch.Tensor:
        ids = torch.tensor([home.tokenizer(text)["input_ids"]])
        return hidden_states(home.model, [Site(index=0)], ids)[Site(index=0)][0, -1]

    ends = [torch.stack([state(text) for text in PAIRS[side]]).mean(0) for side in ("positive", "negative")]
    factor = residual_norms(here, (1,), texts)[1] / residual_norms(home, (0,), texts)[0]
    folder = Store(bench.project.store).folder("subject", record.keys["subject"])
    (vector,) = load_file(folder / "content.safetensors").values()
    torch.testing.assert_close(vector, factor * (ends[0] - ends[1]), rtol=1e-4, atol=1e-6)
    numbers = {value.id: value.value for value in record.metrics}
    assert numbers["steering_dose.length"] == pytest.approx(float(vector.norm()), rel=1e-4)
    # At the last block what arrives is the vector itself; at home it went through one more block.
    assert 0 < abs(numbers["transfer_agreement.cosine"]) < 1


def test_at_home_vectors_agree_with_themselves_and_a_lost_origin_is_made_again(
    bench: Workbench, command: Callable[..., Any]
) -> None:
    steering = {"method": "transfer", "vectors": SOURCE}
    furnished(bench, steering, [{"transfer_agreement": AGREEMENT}])
    assert command("run", "mine", "--executor", "inline").code == 0
    (record,) = bench.records().values()
    numbers = {value.id: value.value for value in record.metrics}
    assert numbers["transfer_agreement.cosine"] == pytest.approx(1, abs=1e-6)
    assert numbers["transfer_agreement.length"] == pytest.approx(1, abs=1e-6)
    store = Store(bench.project.store)
    for kind, key in (("subject", record.keys["origin"]), ("study", record.keys["study/transfer_agreement"])):
        shutil.rmtree(store.folder(kind, key))
    shutil.rmtree(bench.root / "results/records")
    assert command("run", "mine", "--executor", "inline").code == 0
    assert store.has("subject", record.keys["origin"])
    (again,) = bench.records().values()
    assert {value.id: value.value for value in again.metrics} == numbers


@pytest.mark.parametrize(
    ("steering", "metrics", "says"),
    [
        ({**HOME, "vectors": {"method": "none"}}, ["steering_dose"], "makes no vectors that another model could take"),
        ({**HOME, "vectors": {**SOURCE, "layers": [0, 1]}}, ["steering_dose"], "2 vectors cannot be added to 1 blocks"),
        ({**HOME, "model": {"adapter": "transformers", "id": "./wide"}}, ["steering_dose"], "no vector fits both"),
        ({**HOME, "model": {"adapter": "transformers", "id": "./lost"}}, ["steering_dose"], "./lost"),
        (SOURCE, [{"transfer_agreement": AGREEMENT}], "it needs `method: transfer`"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    bench: Workbench, command: Callable[..., Any], steering: Any, metrics: Any, says: str
) -> None:
    furnished(bench, steering, metrics)
    save_tiny_model(bench.root / "wide", width=24)
    done = command("validate")
    assert done.code == 2
    (finding,) = [line for line in done.err.splitlines() if says in line]
    line, column = map(int, finding.split("specs/mine.yaml:")[1].split(":")[:2])
    written = (bench.root / "specs/mine.yaml").read_text().splitlines()
    sections = [number for number, text in enumerate(written, 1) if text.startswith(("steering:", "metrics:"))]
    assert line >= min(sections)
    assert column >= 1
