"""Flow graphs: labels, cut-offs, exports that other programs read back."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.flow.graph import FlowGraph, LatentNode, parse_node, traced
from latentbench.flow.graph_export import FORMATS, Note, to_dot, to_graphml, to_json
from latentbench.flow.labels import layer_statistics, origins, path_lengths
from latentbench.flow.maps import FlowMaps
from latentbench.flow.options import Flow
from tests.support.flow import TiedSae, maps_of

pytestmark = pytest.mark.usefixtures("one_thread")

R0, R1, R2 = (Site(index=i) for i in range(3))
M1, A1 = Site(index=1, point="mlp_out"), Site(index=1, point="attn_out")
HOSTILE = 'a "quoted" \\ back\nslash <script>alert(1)</script> \x00\x1f\ud800 ]]> & \u2028'


def axis(*numbers: int, d: int = 8) -> Tensor:
    """Rows that are sums of unit vectors, at unit length."""
    row = torch.zeros(d)
    row[list(numbers)] = 1
    return row / row.norm()


def small(**flow: Any) -> FlowMaps:
    """R1: translated, processed (by the MLP), newborn (by attention), unexplained. R2: two of them go on."""
    rows = {
        R0: torch.stack([axis(0), axis(1), axis(7)]),
        M1: torch.stack([axis(2), axis(6)]),
        A1: torch.stack([axis(3), axis(6)]),
        R1: torch.stack([axis(0), axis(1, 2), axis(3), axis(5)]),
        R2: torch.stack([axis(0), axis(0, 4), axis(3)]),
    }
    options = Flow.model_validate({"thresholds": {"chance": 1}, **flow})
    return maps_of({site: TiedSae(weights) for site, weights in rows.items()}, options)


def test_the_four_labels() -> None:
    found = origins(small(), R1)
    assert found is not None
    assert [found.label(i) for i in range(4)] == ["translated", "processed", "newborn", "unexplained"]
    assert found.scores["mlp"].tolist() == pytest.approx([0, 2**-0.5, 0, 0], abs=1e-6)
    assert origins(small(), R0) is None


def test_high_values_decide_about_labels() -> None:
    found = origins(small(thresholds={"chance": 1, "residual": 0.8, "layers": {}}), R1)
    assert found is not None
    assert [found.label(i) for i in range(4)] == ["translated", "newborn", "newborn", "unexplained"]


def test_what_chance_would_give_counts_for_nothing() -> None:
    strict = small(thresholds={"chance": 0.01})  # in 8 dimensions even the best of 3 random directions is near
    assert strict.counts(0.25, R0) > 0.7
    assert strict.counts(0.95, R0) == 0.95


def test_what_was_applied_is_exported_not_what_was_asked_for() -> None:
    strict = small(k=2, thresholds={"chance": 0.01})
    graph = traced(strict, LatentNode(R1, 0))
    found = json.loads(to_json(graph))["rules"]
    assert (found["matching"], found["k"], found["fold"]) == ("cosine", 2, "none")
    wide, narrow = strict.counts(0.5, R1), strict.counts(0.5, R0)  # four latents and three
    assert found["residual"]["graph"] == pytest.approx([narrow, wide], abs=1e-4)
    assert found["residual"]["high"] == pytest.approx([narrow, wide], abs=1e-4)
    assert found["mlp"]["graph"] == pytest.approx([strict.counts(0.15, M1)] * 2, abs=1e-4)
    told = f"left out of graphs: residual stream below {narrow:.2f}–{wide:.2f}, MLPs below"
    assert told in to_dot(graph)
    assert told in nx.read_graphml(io.BytesIO(to_graphml(graph).encode())).graph["rules"]
    assert layer_statistics(strict)[1].cut == strict.counts(0.5, R0)
    plain = traced(small(), LatentNode(R1, 0)).rules
    assert plain["residual"] == {"graph": [0.5, 0.5], "high": [0.5, 0.5]}
    assert plain["attention"] == {"graph": [0.15, 0.15], "high": [0.25, 0.25]}


def test_a_graph_goes_back_and_on_and_takes_the_modules_along() -> None:
    graph = traced(small(), LatentNode(R1, 2))
    assert [str(node) for node in graph.nodes] == ["1.attn_out:0", "1.resid_post:2", "2.resid_post:2"]
    assert [(str(e.source), str(e.target), e.part) for e in graph.edges] == [
        ("1.attn_out:0", "1.resid_post:2", "attention"),
        ("1.resid_post:2", "2.resid_post:2", "residual"),
    ]
    assert all(edge.cosine == pytest.approx(1) for edge in graph.edges)
    assert graph.nodes[LatentNode(R1, 2)].label == "newborn"


def test_paths_end_below_the_cut() -> None:
    assert len(traced(small(), LatentNode(R2, 1)).path()) == 3
    cut = small(thresholds={"chance": 1, "cut": 0.9})
    assert traced(cut, LatentNode(R2, 1)).path() == [LatentNode(R2, 1)]
    assert [node.index for node in traced(cut, LatentNode(R2, 0)).path()] == [0, 0, 0]


def test_modules_below_the_drop_are_left_out() -> None:
    kept = traced(small(), LatentNode(R1, 1))
    assert LatentNode(M1, 0) in kept.nodes
    assert LatentNode(A1, 0) not in kept.nodes
    dropped = traced(small(thresholds={"chance": 1, "drop": 0.8}), LatentNode(R1, 1))
    assert LatentNode(M1, 0) not in dropped.nodes


def test_a_graph_stops_at_its_largest_size() -> None:
    whole = traced(small(k=3, thresholds={"chance": 1, "cut": -1, "drop": -1}), LatentNode(R1, 0))
    assert not whole.truncated
    cut = traced(small(k=3, thresholds={"chance": 1, "cut": -1, "drop": -1}), LatentNode(R1, 0), limit=4)
    assert cut.truncated
    assert len(cut.nodes) == 4
    assert all(e.source in cut.nodes and e.target in cut.nodes for e in cut.edges)


def test_births_deaths_and_persistence() -> None:
    first, second, third = layer_statistics(small())
    assert first.births is None
    assert first.deaths == pytest.approx(1 / 3)
    assert second.births == pytest.approx(2 / 4)
    assert second.deaths == pytest.approx(2 / 4)  # the sum of two axes and the unexplained one
    assert third.deaths is None
    assert path_lengths(small())[R0].tolist() == [2, 1, 0]
    assert first.persistence == pytest.approx(1)
    assert sum(second.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("text", ["", "3", "3:x", "x:3", "3.nowhere:1", ":", "3.resid_post", "-1:2", "1:2:3"])
def test_what_names_no_latent_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="names no latent"):
        parse_node(text)


@pytest.mark.parametrize("text", ["0:3", "0:-1", "7:0", "1.mlp_out:0"])
def test_seeds_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        traced(small(), parse_node(text))


def hostile() -> tuple[FlowGraph, dict[LatentNode, Note]]:
    graph = traced(small(), LatentNode(R1, 1))
    return graph, dict.fromkeys(graph.nodes, Note(HOSTILE, (HOSTILE, " x")))


def test_graphml_reads_back() -> None:
    graph, notes = hostile()
    read = nx.read_graphml(io.BytesIO(to_graphml(graph, notes).encode()))
    assert set(read.nodes) == {str(node) for node in graph.nodes}
    assert {(a, b) for a, b in read.edges} == {(str(e.source), str(e.target)) for e in graph.edges}
    assert read.nodes["1.resid_post:1"]["label"] == "processed"
    assert read.nodes["1.resid_post:1"]["score_mlp"] == pytest.approx(2**-0.5, abs=1e-5)
    assert "<script>alert(1)</script>" in read.nodes["1.resid_post:1"]["explanation"]


def test_json_reads_back() -> None:
    graph, notes = hostile()
    read = json.loads(to_json(graph, {node: Note("x", ("y",)) for node in notes}))
    assert read["seed"] == "1.resid_post:1"
    assert len(read["nodes"]) == len(graph.nodes)
    assert read["nodes"][0]["tokens"] == ["y"]
    assert {edge["part"] for edge in read["edges"]} == {"residual", "mlp"}


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_dot_is_accepted_by_graphviz() -> None:
    graph, notes = hostile()
    subprocess.run(["dot", "-Tplain"], input=to_dot(graph, notes).encode(), check=True, capture_output=True)


def test_dot_quotes_everything() -> None:
    graph, notes = hostile()
    text = to_dot(graph, notes)
    bare = text.replace("\\\\", "").replace('\\"', "")
    assert bare.count('"') % 2 == 0
    outside = "".join(bare.split('"')[::2])
    assert "<" not in outside
    assert "script" not in outside


def test_every_format_can_be_written_as_utf8() -> None:
    graph, notes = hostile()
    for write in FORMATS.values():
        write(graph, notes).encode()
