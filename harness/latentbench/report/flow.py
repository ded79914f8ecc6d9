"""The page of a flow cell: graphs of some seed latents, how layers differ, and what steering along the graphs did.

Its data comes from the store: explanations from a file or from autointerp studies of the same SAEs, numbers from the
record. One of its graphs can also be written for other programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.protocols import model_name
from latentbench.core.spec_model import Json
from latentbench.flow.graph import FlowGraph, LatentNode, parse_node, traced
from latentbench.flow.graph_export import FORMATS, Note, Notes, plain
from latentbench.flow.labels import layer_statistics, path_lengths, rules, rules_in_words
from latentbench.flow.maps import FlowMaps
from latentbench.flow.steering_metric import setting_name
from latentbench.leaderboard.load import load
from latentbench.leaderboard.render.html import embedded, offline_page
from latentbench.leaderboard.row_details import page_path
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.report.cells import autointerp_of, cell_of, experiment_of
from latentbench.report.latents import explained_latents as sampled
from latentbench.spec.project import Project
from latentbench.store.files import write_bytes
from latentbench.store.store import Store
from latentbench.study.storage import from_content, stored_content
from latentbench.study.study import Findings

_MAX_BYTES = 64 << 20
"""Of a file of explanations: a sentence for each of some hundred thousand latents."""


def explained(record: Record, project: Project) -> dict[str, str]:
    """Explanations by `SITE:NUMBER` of latents of the record's SAEs, wherever other cells had them scored.

    SAEs are the same where their stages' keys are: a spec with `layer: 3` trains the SAE that a flow spec trains there.
    """
    site_of = {key: name.removeprefix("sae@") for name, key in record.keys.items() if name.startswith("sae@")}
    store, found = Store(project.store), dict[str, str]()
    for cell in load(project.results).loaded:
        site = site_of.get(cell.record.keys.get("sae", ""))
        if site and (details := autointerp_of(store, cell.record)):
            texts = {number: latent.explanation for number, latent in sampled(details).items()}
            found |= {f"{site}:{number}": text for number, text in texts.items() if text}
    return found


def read_explanations(path: Path) -> dict[str, str]:
    """A JSON object of texts by `SITE:NUMBER`. Raises RefusedFile for anything else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RefusedFile(f"{path.name} is larger than explanations can be")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedFile(f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise RefusedFile(f'{path.name} holds no explanations: it must be {{"LAYER.POINT:NUMBER": "text", …}}')
    return found


SCRIPTS = ("dom.js", "axes.js", "flow-state.js", "flow-graph.js", "flow-about.js", "flow-steering.js", "flow-app.js")
DEFAULT_SEEDS = 3
TEXTS = 6
"""Texts shown per setting."""


@dataclass(frozen=True)
class FlowCell:
    """What the store holds of a flow cell."""

    record: Record
    maps: FlowMaps
    studies: Mapping[str, Findings]
    """By metric name, those that are still in the store."""


def flow_record(results: Path, wanted: str) -> Record:
    """The one cell meant. Raises InvalidInput for something unknown, several seeds, or a cell without flow maps."""
    record = cell_of(results, wanted)
    if not record.resolved.get("flow") or "subject" not in record.keys:
        raise InvalidInput(f"{wanted} has no flow maps: its spec has no `flow:` section")
    return record


def flow_cell(record: Record, project: Project) -> FlowCell:
    """The maps and studies of a record. Raises NotAvailable when the maps are not in the store."""
    store, experiment = Store(project.store), experiment_of(record)
    assert experiment.flow is not None
    maps = stored_content(store, "subject", record.keys["subject"])
    if maps is None:
        raise NotAvailable("the flow maps of this record are not in the store; run its spec again")
    found = {
        name.removeprefix("study/"): stored_content(store, "study", key)
        for name, key in record.keys.items()
        if name.startswith("study/")
    }
    studies = {name: from_content(content) for name, content in found.items() if content is not None}
    return FlowCell(record, FlowMaps.from_content(maps, experiment.flow), studies)


def seeds_of(cell: FlowCell, wanted: Sequence[str]) -> list[LatentNode]:
    """The latents asked for; else those the cell was steered with; else those of the longest paths."""
    if wanted:
        return [parse_node(text) for text in wanted]
    steering = cell.studies.get("flow_steering")
    if steering and steering.details.get("seeds"):
        return [parse_node(text) for text in steering.details["seeds"]]
    first = cell.maps.residual[0]
    longest = path_lengths(cell.maps)[first].topk(min(DEFAULT_SEEDS, cell.maps.width(first))).indices
    return [LatentNode(first, latent) for latent in sorted(longest.tolist())]


def notes_of(cell: FlowCell, graphs: Sequence[FlowGraph], explanations: Mapping[str, str] | None = None) -> Notes:
    """Top tokens from the agreement study, and explanations by `SITE:INDEX`."""
    found = cell.studies.get("flow_agreement")
    texts: Mapping[str, str] = found.details.get("texts", {}) if found else {}
    given = {parse_node(name): text for name, text in (explanations or {}).items()}
    nodes = dict.fromkeys(node for graph in graphs for node in graph.nodes)
    return {node: Note(given.get(node), _tokens(found, node, texts)) for node in nodes}


def page(cell: FlowCell, seeds: Sequence[LatentNode], explanations: Mapping[str, str] | None = None) -> str:
    """The HTML file."""
    graphs = [traced(cell.maps, seed) for seed in seeds]
    notes = notes_of(cell, graphs, explanations)
    layers = [layer.plain() for layer in layer_statistics(cell.maps)]
    steering = steering_of(cell.record, cell.studies.get("flow_steering"))
    return rendered(_title(cell.record), _facts(cell), graphs, notes, layers, _warnings(cell), steering)


def rendered(
    title: str,
    facts: Sequence[str],
    graphs: Sequence[FlowGraph],
    notes: Notes,
    layers: Sequence[Json] = (),
    warnings: Sequence[str] = (),
    steering: Json = None,
) -> str:
    """The HTML file of some graphs, whatever they were made of; `steering` as `steering_of` gives it."""
    drawn = [plain(graph, notes) for graph in graphs]
    data = {"facts": list(facts), "graphs": drawn, "layers": list(layers), "steering": steering}
    return offline_page(
        "flow.html",
        SCRIPTS,
        ("style.css", "flow.css"),
        folder=Path(__file__).parent,
        title=title,
        notes=list(warnings),
        data=embedded(data),
    )


def _tokens(found: Findings | None, node: LatentNode, texts: Mapping[str, str]) -> tuple[str, ...]:
    ids = found.tensors.get(f"{node.site}.top_tokens") if found else None
    if not isinstance(ids, torch.Tensor):
        return ()
    return tuple(texts[str(i)] for i in ids[node.index].tolist() if str(i) in texts)


def _title(record: Record) -> str:
    label = f" [{record.label}]" if record.label else ""
    return f"{record.spec.name}{label}, seed {record.seed}"


def _facts(cell: FlowCell) -> list[str]:
    name = re.split(r"[\\/]", model_name(cell.record.resolved.get("model")))[-1]
    return [name, f"{len(cell.maps.sites)} sites", *rules_in_words(rules(cell.maps))]


def _warnings(cell: FlowCell) -> list[str]:
    if "flow_agreement" in cell.studies:
        return []
    return ["Top tokens are missing: they come from the metric flow_agreement, which this cell does not have."]


def steering_of(record: Record, study: Findings | None) -> dict[str, Json] | None:
    """The page's data; None where the cell was not steered. Without the study in the store there are no texts."""
    numbers = {
        metric.id.partition(".")[2]: metric for metric in record.metrics if metric.id.startswith("flow_steering.")
    }
    if (base := numbers.get("base_rate")) is None:
        return None
    shown = study.details.get("settings", {}) if study else {}
    return {
        "target": base.params["target"],
        "action": base.params["action"],
        "start": base.domain,
        "base": {"rate": _with_interval(base), "texts": _texts(shown.get("base"))},
        "accuracy": numbers["accuracy"].value if "accuracy" in numbers else None,
        "settings": [
            {"schedule": way, "strength": strength, **found, "texts": _texts(shown.get(setting_name(way, strength)))}
            for (way, strength), found in _settings(record.metrics, "strength").items()
        ],
        "costs": [
            {"schedule": way, "cost": cost, **found}
            for (way, cost), found in _settings(record.metrics, "cost").items()
        ],
    }  # fmt: skip


def _settings(metrics: Iterable[MetricValue], by: str) -> dict[tuple[Json, Json], dict[str, Json]]:
    """Numbers by schedule and strength, or cost."""
    found: dict[tuple[Json, Json], dict[str, Json]] = {}
    for metric in metrics:
        name = metric.id.partition(".")[2]
        if metric.id.startswith("flow_steering.") and by in metric.params:
            found.setdefault((metric.params["schedule"], metric.params[by]), {})[name] = _with_interval(metric)
    return found


def _with_interval(metric: MetricValue) -> dict[str, Json]:
    ends = {"low": metric.ci.low, "high": metric.ci.high} if metric.ci else {"low": None, "high": None}
    return {"value": metric.value, "reason": metric.null_reason, **ends}


def _texts(setting: Json) -> list[str]:
    return list(setting["texts"][:TEXTS]) if setting else []


def write(
    project: Project, run: str, latents: list[str], output: Path | None, to: str, explanations: Path | None
) -> list[str]:
    """Writes the page, or one graph in another format, and returns what to say about it.

    Explanations in the file `explanations` go before those that are stored. Raises InvalidInput, RefusedFile or NotAvailable.
    """
    record = flow_record(project.results, run)
    cell = flow_cell(record, project)
    given = explained(record, project) | (read_explanations(explanations) if explanations else {})
    target = output or page_path(project.results, record.cell, "flow", to)
    seeds = seeds_of(cell, latents)
    if to == "html":
        write_bytes(target, page(cell, seeds, given).encode())
    else:
        write_bytes(target, _exported(cell, latents, to, given).encode())
    return [f"wrote {target}"]


def _exported(cell: FlowCell, latents: list[str], to: str, explanations: Mapping[str, str]) -> str:
    if len(latents) != 1:
        raise InvalidInput(f"a {to} file holds one graph: give one --latent")
    graph = traced(cell.maps, seeds_of(cell, latents)[0])
    return FORMATS[to](graph, notes_of(cell, [graph], explanations))
