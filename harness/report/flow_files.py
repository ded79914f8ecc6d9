"""Writing a flow cell's page, or one of its graphs for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from harness.errors import InvalidInput, RefusedFile
from harness.flow.export import FORMATS
from harness.flow.graph import traced
from harness.leaderboard.pages import page_path
from harness.project import Project
from harness.report.flow import FlowCell, flow_cell, flow_record, notes_of, page, seeds_of
from harness.store.files import write_bytes

_MAX_BYTES = 64 << 20


def write(
    project: Project, run: str, latents: list[str], output: Path | None, to: str, explanations: Path | None
) -> list[str]:
    """Writes the file and returns what to say. Raises InvalidInput, RefusedFile or NotAvailable."""
    record = flow_record(project.results, run)
    cell = flow_cell(record, project)
    given = read_explanations(explanations) if explanations else {}
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


def read_explanations(path: Path) -> dict[str, str]:
    """A JSON object of texts. Raises RefusedFile for anything else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RefusedFile(f"{path.name} is larger than explanations can be")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedFile(f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise RefusedFile(f'{path.name} holds no explanations: it must be {{"LAYER.POINT:NUMBER": "text", …}}')
    return found
