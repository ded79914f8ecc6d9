"""Writing a flow cell's page, or one of its graphs for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latentbench.errors import InvalidInput
from latentbench.flow.export import FORMATS
from latentbench.flow.graph import traced
from latentbench.leaderboard.pages import page_path
from latentbench.project import Project
from latentbench.report.explanations import explained, read_explanations
from latentbench.report.flow import FlowCell, flow_cell, flow_record, notes_of, page, seeds_of
from latentbench.store.files import write_bytes


def write(
    project: Project, run: str, latents: list[str], output: Path | None, to: str, explanations: Path | None
) -> list[str]:
    """Writes the file and returns what to say; explanations of the file go before those that are stored. Raises InvalidInput, RefusedFile or NotAvailable."""
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
