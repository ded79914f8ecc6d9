"""Several domains at once: residual SAEs on one base, each trained on its own texts, measured together on all of them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from latentbench.plan.stages import stages_of
from latentbench.spec.project import load_specs
from tests.conftest import Command
from tests.support.project import Workbench, documents, merged, random_words, write_jsonl

BASE = {"variant": "topk", "width": 32, "k": 4}
BOOST = {"variant": "boosted", "base": BASE, "width": 16, "k": 2}


def text(name: str, **more: Any) -> dict[str, Any]:
    return {"adapter": "files", "path": f"data/{name}.jsonl", "context": 16, **more}


@pytest.fixture
def domains(bench: Workbench) -> Workbench:
    """A project with general texts and two domains."""
    write_jsonl(bench.root / "data/flasks.jsonl", documents(120, start=1000))
    write_jsonl(bench.root / "data/random.jsonl", random_words(120))
    bench.spec(
        "both",
        dataset__train=None,
        dataset__base=text("train", tokens=1024),
        dataset__domains={name: text(name, tokens=2048) for name in ("flasks", "random")},
        dataset__eval={name: text(name, documents=6) for name in ("flasks", "random")},
        sae={"variant": "boost_ensemble", "boosts": [BOOST, BOOST], "domains": ["flasks", "random"]},
        metrics=["explained_variance", "cost"],
    )
    return bench


def test_every_boost_is_trained_on_its_domain_and_the_base_once(domains: Workbench, command: Command) -> None:
    done = command("run", "both", "--executor", "inline")
    assert done.code == 0, done.err
    (record,) = domains.records().values()
    (spec,) = load_specs(domains.project, ["both"])
    (made,) = stages_of(spec.cells[0], domains.project.roots).saes
    flasks, random = made.bases
    assert flasks.tokens
    assert random.tokens
    assert flasks.tokens.payload["dataset"] != random.tokens.payload["dataset"]
    assert flasks.bases[0].stage.key == random.bases[0].stage.key
    assert flasks.bases[0].tokens != flasks.tokens
    assert len(domains.weights()) == 4  # one base, two residuals, and the ensemble, which has none of its own
    assert record.keys["sae"] == made.stage.key
    parameters = next(m.value for m in record.metrics or () if m.id == "cost.parameters")
    d = 16
    assert parameters == 32 * (2 * d + 1) + d + 2 * 16 * (2 * d + 1)


def test_a_boost_alone_has_the_residual_that_it_has_in_the_ensemble(domains: Workbench, command: Command) -> None:
    assert command("run", "both", "--executor", "inline").code == 0
    before = domains.weights()
    domains.spec(
        "one",
        dataset__train=text("flasks", tokens=2048),
        dataset__base=text("train", tokens=1024),
        sae=BOOST,
        metrics=["explained_variance"],
    )
    assert command("run", "one", "--executor", "inline").code == 0
    assert domains.weights() == before
    records = domains.records()
    assert records["one[][0]"].cost.training_memory_bytes  # read from the training that the other cell paid for
    assert records["both[][0]"].cost.training_memory_bytes is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"sae.domains": ["flasks", "nowhere"]},
            "there are no texts 'nowhere' in dataset.domains (known: flasks, random)",
        ),
        ({"sae.domains": ["flasks"]}, "domains names 1 texts for 2 boosts"),
        ({"dataset.base": None}, "say in dataset.base what that is trained on"),
        ({"dataset.domains.random.tokens": None}, "dataset.domains.random: state how many `tokens` to train on"),
        ({"dataset.domains.random.tokens": 3}, "3 tokens are fewer than one context of 16"),
        ({"dataset.domains.random.path": "data/none.jsonl"}, "none.jsonl"),
        ({"dataset.base.tokens": None}, "dataset.base: state how many `tokens`"),
        ({"sae.domains": []}, "the variant 'boosted' is trained, so dataset.train is required"),
    ],
)
def test_domains_that_are_not_there_are_refused(
    domains: Workbench, command: Command, changes: dict[str, Any], reason: str
) -> None:
    plain = yaml.safe_load((domains.root / "specs/both.yaml").read_text())
    domains.write("specs/both.yaml", yaml.safe_dump(merged(plain, changes)))
    done = command("validate", "both")
    assert done.code == 2
    assert reason in done.err
    assert done.err.startswith("specs/both.yaml:")
