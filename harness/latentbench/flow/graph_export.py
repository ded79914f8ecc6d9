"""Flow graphs as files for other programs, with what people read beside a latent: JSON, DOT (Graphviz) and GraphML."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentbench.core.spec_model import Json
from latentbench.flow.graph import FlowGraph, LatentNode
from latentbench.flow.labels import rules_in_words
from latentbench.flow.topology import depth

FORMAT = "latentbench.flow_graph"


@dataclass(frozen=True)
class Note:
    """What people read beside a latent."""

    explanation: str | None = None
    tokens: tuple[str, ...] = ()
    """Texts of the tokens it is most active on, strongest first."""


Notes = Mapping[LatentNode, Note]


def plain(graph: FlowGraph, notes: Notes | None = None) -> Json:
    """The graph as JSON data: seed, nodes (id, site, latent, layer, label, scores, notes), edges,
    and the rules they were made by (harness/latentbench/flow/labels.py)."""
    return {
        "format": FORMAT,
        "schema": 1,
        "seed": str(graph.seed),
        "truncated": graph.truncated,
        "rules": graph.rules,
        "nodes": [_node(graph, node, (notes or {}).get(node)) for node in graph.nodes],
        "edges": [
            {"source": str(e.source), "target": str(e.target), "part": e.part, "cosine": round(e.cosine, 6)}
            for e in graph.edges
        ],
    }


def to_json(graph: FlowGraph, notes: Notes | None = None) -> str:
    """`plain` as text."""
    text = json.dumps(plain(graph, notes), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace").decode()


def to_dot(graph: FlowGraph, notes: Notes | None = None) -> str:
    """For Graphviz: one rank per layer."""
    data = plain(graph, notes)
    ranks: dict[int, list[str]] = {}
    for node in data["nodes"]:
        ranks.setdefault(node["layer"], []).append(_quoted(node["id"]))
    lines = [f"  {_quoted(n['id'])} [label={_quoted(_caption(n))}, shape={_shape(n)}];" for n in data["nodes"]]
    lines += [f"  {{ rank=same; {'; '.join(ids)}; }}" for ids in ranks.values()]
    lines += [
        f"  {_quoted(e['source'])} -> {_quoted(e['target'])} [label={_quoted(format(e['cosine'], '.2f'))}];"
        for e in data["edges"]
    ]
    title = f"  label={_quoted('; '.join(rules_in_words(graph.rules)))};"
    return "\n".join(["digraph flow {", "  rankdir=BT;", title, *lines, "}"]) + "\n"


def to_graphml(graph: FlowGraph, notes: Notes | None = None) -> str:
    """For networkx, Gephi, yEd: attributes of nodes and edges as in `plain`, lists joined by line feeds."""
    import networkx as nx

    data = plain(graph, notes)
    made: Any = nx.DiGraph(seed=data["seed"], rules="\n".join(rules_in_words(graph.rules)))
    for node in data["nodes"]:
        made.add_node(_xml(node["id"]), **{key: _xml(value) for key, value in _flat(node).items()})
    for edge in data["edges"]:
        made.add_edge(edge["source"], edge["target"], part=edge["part"], cosine=edge["cosine"])
    return "\n".join(nx.generate_graphml(made)) + "\n"


FORMATS: dict[str, Callable[[FlowGraph, Notes | None], str]] = {"json": to_json, "dot": to_dot, "graphml": to_graphml}
"""Writers by file extension."""


def _node(graph: FlowGraph, node: LatentNode, note: Note | None) -> Json:
    facts = graph.nodes[node]
    return {
        "id": str(node),
        "site": str(node.site),
        "latent": node.index,
        "layer": depth(node.site),
        "label": facts.label,
        "scores": {part: round(score, 6) for part, score in facts.scores.items()},
        "explanation": note.explanation if note else None,
        "tokens": list(note.tokens) if note else [],
    }


def _flat(node: Json) -> dict[str, Json]:
    """Scalars only, without those that are not there."""
    scores = {f"score_{part}": score for part, score in node["scores"].items()}
    rest = {key: node[key] for key in ("site", "latent", "layer", "label", "explanation")}
    tokens = {"tokens": "\n".join(node["tokens"])} if node["tokens"] else {}
    return {key: value for key, value in {**rest, **scores, **tokens}.items() if value is not None}


def _xml(value: Json) -> Json:
    """Text without the characters that XML has no way to write."""
    if not isinstance(value, str):
        return value
    return "".join(
        c if c in "\t\n\r" or (c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff") else "\ufffd"
        for c in value
    )


def _quoted(text: str) -> str:
    cleaned = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return '"' + cleaned.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _caption(node: Json) -> str:
    lines = (node["id"], node["label"], node["explanation"], " ".join(node["tokens"][:4]))
    return "\n".join(line for line in lines if line)


def _shape(node: Json) -> str:
    return {"mlp_out": "box", "attn_out": "diamond"}.get(node["site"].partition(".")[2], "ellipse")
