"""A flow spec from the command line: run, page, exports, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx
import pytest
from safetensors.torch import load_file

from latentbench.report.flow import explained
from tests.conftest import Command
from tests.support.project import Workbench, random_words, write_jsonl

FLOW: dict[str, Any] = {
    "layer": None,
    "layers": [0, "1.mlp_out", 1],
    "flow": {"thresholds": {"chance": 1, "cut": -1, "drop": -1}},
    "metrics": ["flow_matching", "flow_agreement", "flow_transition"],
}


def test_a_flow_cell_gets_a_row_a_page_and_exports(bench: Workbench, command: Command) -> None:
    path = bench.spec("flow", **FLOW)
    assert command("run", str(path), "--executor", "inline").code == 0
    record = bench.records()["flow[][0]"]
    told = {value.id: value.value for value in record.metrics}
    assert record.status == "ok"
    assert told["flow_matching.rate"] == 1  # the cut is below every cosine
    assert told["flow_agreement.residual"] is not None
    made = command("report", "flow", "flow", "--latent", "1:3")
    assert made.code == 0, made.err
    page = next((bench.root / "results/pages").glob("*-flow.html")).read_text("utf-8")
    assert "1.resid_post:3" in page
    assert command("report", "flow", "flow").code == 0
    for to in ("json", "graphml", "dot"):
        target = bench.root / f"graph.{to}"
        assert command("report", "flow", "flow", "--latent", "1:3", "--to", to, "-o", str(target)).code == 0
    assert "1.resid_post:3" in nx.read_graphml(bench.root / "graph.graphml").nodes
    assert json.loads((bench.root / "graph.json").read_text("utf-8"))["seed"] == "1.resid_post:3"


def test_a_flow_is_a_steering_vector_like_any_other(bench: Workbench, command: Command) -> None:
    """One vector for each layer that has an SAE, with the row, the receipt and the file of every other method."""
    steered = {"method": "flow", "latents": ["1:3"], "matching": FLOW["flow"], "schedule": "linear", "strength": 3}
    path = bench.spec("steered", layer=None, layers=[0, 1], steering=steered, metrics=["capability_cost"])
    done = command("run", str(path), "--executor", "inline")
    assert done.code == 0, done.err
    (record,) = bench.records().values()
    assert record.status == "ok", record.error
    told = {v.id: v.value for v in record.metrics if v.params.get("scale") in (1, None)}
    assert told["capability_cost.kl"] > 0
    assert command("export-vectors", "steered", "-o", str(bench.root / "v.safetensors")).code == 0
    vectors = load_file(bench.root / "v.safetensors")
    assert sorted(vectors) == ["layer.0", "layer.1"]
    assert [float(v.norm()) for _, v in sorted(vectors.items())] == pytest.approx([3, 1])


def test_the_page_tells_what_an_autointerp_study_of_the_same_sae_found(bench: Workbench, command: Command) -> None:
    flow = bench.spec("flow", **FLOW)
    write_jsonl(bench.root / "data/many.jsonl", random_words(64))
    texts = {"adapter": "files", "path": "data/many.jsonl", "documents": 64, "context": 32}
    small = {"latents": 4, "explain_examples": 4, "test_examples": 6, "radius": 3, "domain": "many"}
    scored = bench.spec("scored", layer=1, dataset__eval__many=texts, metrics=[{"autointerp": small}])
    assert command("run", str(flow), str(scored), "--executor", "inline").code == 0
    found = explained(bench.records()["flow[][0]"], bench.project)
    assert found
    node, text = next(iter(found.items()))
    assert node.startswith("1.resid_post:")
    assert command("report", "flow", "flow", "--latent", node).code == 0
    page = next((bench.root / "results/pages").glob("*-flow.html")).read_text("utf-8")
    assert text.split("'")[0] in page


def test_what_cannot_be_shown_is_said_in_one_line(bench: Workbench, command: Command) -> None:
    path = bench.spec("flow", **FLOW)
    assert command("run", str(path), "--executor", "inline").code == 0
    bad = bench.write("notes.json", '{"1.resid_post:3": 4}')
    for arguments, said in (
        (["--latent", "1:99"], "is no latent of the residual stream"),
        (["--latent", "x"], "names no latent"),
        (["--to", "json"], "holds one graph"),
        (["--explanations", str(bad)], "holds no explanations"),
        (["--explanations", "missing.json"], "cannot be read"),
    ):
        done = command("report", "flow", "flow", *arguments)
        assert (done.code, said in done.err, "Traceback" in done.err) == (2, True, False), done.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": [0]}, "at least two places"),
        ({"layers": [0, "1.mlp_out"]}, "residual stream of two layers"),
        ({"flow": {"matching": "permutation", "k": 2}}, "k must be 1"),
    ],
)
def test_specs_that_cannot_flow_are_refused(
    bench: Workbench, command: Command, changes: dict[str, Any], said: str
) -> None:
    path = bench.spec("flow", **{**FLOW, **changes})
    done = command("validate", str(path))
    assert done.code == 2
    assert said in done.out + done.err


@pytest.mark.parametrize(("device", "said"), [("banana", "unknown device"), ("cuda:7", "is not here")])
def test_the_bench_says_which_devices_there_are(command: Command, device: str, said: str) -> None:
    done = command("bench", "flow", "--device", device)
    assert done.code != 0
    assert said in done.err
    assert "Traceback" not in done.err
