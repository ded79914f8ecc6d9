"""Pages that were written beside the report: what single latents, steering vectors and flow maps look like."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from latentbench.leaderboard.board import Board
from latentbench.section import Json

FOLDER = "pages"
_NAME = re.compile(r"^(?P<cell>[0-9a-f]{12,64})-(?P<kind>latents|steering|flow)\.html$")


def page_path(results: Path, cell: str, kind: str, ending: str = "html") -> Path:
    """Where the page of a cell is written so that the report beside it finds it."""
    return results / FOLDER / f"{cell[:16]}-{kind}.{ending}"


def pages_of(board: Board, beside: Path | None) -> dict[str, Json]:
    """By row id, `[what is shown, relative address]` of every page `pages/<cell>-<kind>.html` in the folder `beside`."""
    if beside is None or not (beside / FOLDER).is_dir():
        return {}
    known: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for path in sorted((beside / FOLDER).iterdir()):
        if (match := _NAME.match(path.name)) and path.is_file():
            known[match["cell"][:12]].append((match["cell"], match["kind"], f"{FOLDER}/{path.name}"))
    found: dict[str, Json] = {}
    for row in (row for group in board.groups for row in group.rows):
        links = [
            [f"{kind}, seed {cell.record.seed}" if len(row.cells) > 1 else kind, address]
            for cell in row.cells
            for start, kind, address in known.get(cell.record.cell[:12], ())
            if cell.record.cell.startswith(start)
        ]
        if links:
            found[row.id] = links
    return found
