"""What `concepts:` and its metrics can say, read without torch, and what `validate` refuses and where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from latentbench.concepts.detection import ConceptDetection
from latentbench.concepts.openings import OPENINGS
from latentbench.concepts.options import Concepts
from latentbench.concepts.steering_metric import ConceptSteering
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge
from latentbench.plan.stages import stages_of
from latentbench.spec.checks import check
from latentbench.spec.project import load_specs
from latentbench_adapters.datasets import HuggingFaceDataset
from tests.support.project import WORDS, Workbench

SETS = {"adapter": "files", "path": "data/sets/*.csv", "label": "target", "context": 16}
CONCEPTS: dict[str, Any] = {
    "way": "mean",
    "layer": 0,
    "sets": SETS,
    "texts": 8,
    "chosen": {"hot": {"set": "heat", "label": "hot"}},
}


@pytest.fixture
def labelled(bench: Workbench) -> Workbench:
    """A project with one labelled set."""
    rows = [f"{' '.join(WORDS[(i + j) % 10 + 10 * (i % 2)] for j in range(6))} {i},{'hc'[i % 2]}" for i in range(160)]
    text = "\n".join(["text,target", *rows]).replace(",h", ",hot").replace(",c", ",cold")
    bench.write("data/sets/heat.csv", text + "\n")
    return bench


def problems(bench: Workbench, **changes: Any) -> list[str]:
    given = {"sae": None, "layer": None, "training": None, "metrics": ["concept_steering"], "concepts": CONCEPTS}
    bench.spec(**{**given, **changes})
    (spec,) = load_specs(bench.project, ["mine"])
    return [str(problem) for problem in check(spec, bench.project.roots)]


def test_a_plain_spec_is_valid(labelled: Workbench) -> None:
    assert problems(labelled, metrics=["concept_steering", "concept_detection"]) == []


@pytest.mark.parametrize(
    ("changes", "at", "says"),
    [
        ({"concepts": {**CONCEPTS, "chosen": {"x": {"set": "nothing", "label": "a"}}}}, "concepts", "no labelled set 'nothing' (known: heat)"),
        ({"concepts": {**CONCEPTS, "layer": 7}}, "concepts", "the model has 2 blocks, numbered 0 to 1"),
        ({"concepts": {**CONCEPTS, "sets": {**SETS, "context": 65}}}, "concepts", "positions for 64 tokens, not 65"),
        ({"concepts": {**CONCEPTS, "sets": {**SETS, "label": None}}}, "concepts", "name the column that holds them as `label`"),
        ({"concepts": {**CONCEPTS, "way": "latent"}}, "concepts", "needs an `sae:` that reads the output of block 0"),
        ({"dataset": {"eval": {"lab": None}}}, "concepts", "a dose is told by evaluation texts"),
        ({"metrics": ["capability_cost"]}, "metrics", "needs a `steering:` section"),
        ({"steering": {"method": "random", "norm": 1.0}}, "concepts", "`steering:` and `concepts:` are experiments of their own"),
        ({"metrics": [{"concept_steering": {"judge": {"adapter": "lexical"}}}]}, "metrics", "it needs a chat model"),
        ({"metrics": [{"concept_steering": {"tokens": 64}}]}, "metrics", "answers of 64 tokens leave no room"),
    ],
)  # fmt: skip
def test_wrong_combinations_are_refused_with_their_place(
    labelled: Workbench, changes: dict[str, Any], at: str, says: str
) -> None:
    (problem,) = [line for line in problems(labelled, **changes) if says in line]
    lines = (labelled.root / "specs/mine.yaml").read_text().splitlines()
    _, line, column, _ = problem.split(":", 3)
    inside = [n for n, text in enumerate(lines, 1) if text.startswith(at)]
    assert inside[0] <= int(line)
    assert int(column) >= 1


def test_an_sae_that_nobody_reads_is_refused(labelled: Workbench) -> None:
    labelled.spec(concepts=CONCEPTS, metrics=["concept_steering"])
    (spec,) = load_specs(labelled.project, ["mine"])
    assert any("reads no SAE" in str(problem) for problem in check(spec, labelled.project.roots))


def test_the_metrics_need_concepts(labelled: Workbench) -> None:
    found = problems(labelled, concepts=None, steering={"method": "random", "norm": 1.0})
    assert any("the metric 'concept_steering' needs a `concepts:` section" in problem for problem in found)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"selection": len(OPENINGS)}, "need 56 openings, there are 40"),
        ({"openings": ("a", "b", "a"), "selection": 1, "prompts": 2}, "stands there twice"),
        ({"doses": ()}, "at least 1"),
        ({"doses": (0.0,)}, "greater than 0"),
    ],
)
def test_wrong_metrics_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ConceptSteering(**fields)


def test_openings_that_choose_do_not_measure() -> None:
    study = ConceptSteering(selection=5, prompts=7)
    assert (*study.choosing, *study.measuring) == OPENINGS[:12]
    assert len(set(OPENINGS)) == len(OPENINGS)


def test_what_says_how_ways_are_made_is_in_the_key_of_those_alone(labelled: Workbench) -> None:
    def key(**changes: Any) -> str:
        labelled.spec(
            sae=None,
            layer=None,
            training=None,
            metrics=["concept_steering"],
            concepts={**CONCEPTS, **changes},
        )
        (spec,) = load_specs(labelled.project, ["mine"])
        subject = stages_of(spec.cells[0], labelled.project.roots).subject
        assert subject is not None
        return subject.key

    trained, said = {"adapter": {"steps": 7}}, {"prompting": {"text": "x"}}
    assert key() == key(**trained) == key(**said)
    assert key(way="lora") != key(way="lora", **trained)
    assert key(way="lora") == key(way="lora", **said)
    assert key(way="prompt") != key(way="prompt", **said)
    assert len({key(), key(texts=9), key(most=100), key(layer=1), key(way="pca")}) == 5


def test_a_chat_judge_is_asked_as_often_as_the_plan_says(labelled: Workbench) -> None:
    class Chatty(Judge):
        def chat(self, requests: Any, roots: Roots, cache: Path) -> Any:
            return iter(())

        def identity(self, roots: Roots) -> Any:
            return "chatty"

    labelled.spec(sae=None, layer=None, training=None, metrics=["concept_steering"], concepts=CONCEPTS)
    (spec,) = load_specs(labelled.project, ["mine"])
    study = ConceptSteering(doses=(0.1, 0.2), selection=4, prompts=5).model_copy(
        update={"judge": Chatty(adapter="chatty")}
    )
    said = study.preview(spec.cells[0].experiment, labelled.project.roots)
    assert said == f"{3 * (2 * 4 + 3 * 5):,} requests to the judge chatty"
    ids = [number.id for number in study.numbers()]
    assert ids.count("concept_steering.score") == 2
    assert "concept_steering.instruction" in ids


def test_reading_concepts_imports_no_torch() -> None:
    code = (
        "import latentbench.concepts.options, latentbench.concepts.steering_metric, latentbench.concepts.detection, sys"
    )
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)


def test_a_hub_dataset_with_labels_is_one_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"text": "a", "kind": 1}, {"text": "b", "kind": "x"}, {"text": "c", "kind": None}]
    monkeypatch.setattr("latentbench_adapters.datasets.streamed_rows", lambda *asked: iter(rows))
    data, roots = HuggingFaceDataset(id="owner/texts", revision="a" * 40, label="kind"), Roots(tmp_path)
    found = iter(data.labelled(roots)["owner/texts"])
    assert [next(found), next(found)] == [("a", "1"), ("b", "x")]
    with pytest.raises(InvalidInput, match="no label under 'kind'"):
        next(found)
    bare = HuggingFaceDataset(id="owner/texts", revision="a" * 40)
    assert "label" not in bare.plain()
    with pytest.raises(InvalidInput, match="name the column"):
        bare.labelled(roots)


def test_every_number_of_the_metrics_is_over_concepts() -> None:
    for study in (ConceptSteering(), ConceptDetection()):
        assert {number.units for number in study.numbers()} == {"concepts"}
        assert all(number.id.startswith(study.metric) for number in study.numbers())


def test_parts_are_read_as_they_are_written() -> None:
    made = Concepts.model_validate({**CONCEPTS, "prompting": {"text": "", "examples": 2}})
    assert Concepts.model_validate(made.plain()) == made
    with pytest.raises(ValidationError, match="state a `text`"):
        Concepts.model_validate({**CONCEPTS, "prompting": {"text": ""}})
