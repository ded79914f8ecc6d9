"""What the HTML report shows of a row beside its numbers: training curves, pages about its inside, what exactly was run."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path

from latentbench.core.errors import DamagedArtifact, StoreError
from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Board, Row
from latentbench.leaderboard.load import LoadedRecord
from latentbench.sae.options.training import TRAINING_FILE
from latentbench.store.files import read_json
from latentbench.store.store import Store

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


SHOWN = ("normalised", "l0", "dead")
"""Columns of the curve that are shown: squared error over the batch's variance, active latents, dead latents."""
ROWS = 500
"""Rows whose curves go into a page; thousands would make it slow to open."""
POINTS = 60
"""Points of a curve that are kept: as many as its drawing, a few hundred pixels wide, can show."""


def curves_of(board: Board, store: Path | None) -> dict[str, Json]:
    """By row id and then by seed (`seed 0`), the steps and the shown columns; rows without a curve are left out."""
    if store is None:
        return {}
    rows = [row for group in board.groups for row in group.rows if row.measured][:ROWS]
    opened = Store(store)
    found = {row.id: {name: c for cell in row.measured for name, c in _of_cell(opened, cell)} for row in rows}
    return {row: curves for row, curves in found.items() if curves}


def _of_cell(store: Store, cell: LoadedRecord) -> list[tuple[str, Json]]:
    keys = {name: key for name, key in cell.record.keys.items() if store.has("sae", key)}
    named = [(f"seed {cell.record.seed}" + (f", {name}" if len(keys) > 1 else ""), key) for name, key in keys.items()]
    return [(name, curve) for name, key in named if (curve := _curve(store.folder("sae", key) / TRAINING_FILE))]


def _curve(path: Path) -> Json:
    """The curve thinned out; None where there is none, or none of ours."""
    try:
        curve = read_json(path)["curve"]
        steps = [int(step) for step in curve["step"]]
        columns = {name: [float(v) for v in curve[name]] for name in SHOWN if name in curve}
    except (StoreError, DamagedArtifact, KeyError, TypeError, ValueError, AttributeError):
        return None  # a loaded or closed-form SAE has none; a damaged file concerns `store verify`, not the report
    if len(steps) < 2 or not columns or any(len(column) != len(steps) for column in columns.values()):
        return None
    last, stride = len(steps) - 1, math.ceil(len(steps) / POINTS)
    kept = sorted({*range(0, last + 1, stride), last})
    shown = {name: [_short(column[i]) for i in kept] for name, column in columns.items()}
    return {"step": [steps[i] for i in kept], **shown}


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def provenance(row: Row) -> dict[str, Json]:
    """What was run, on what, and the command that runs it again, as its newest record says."""
    record = row.newest.record
    return {
        "command": row.newest.command,
        "imported": record.imported.plain() if record.imported else None,
        "spec": record.spec.plain(),
        "resolved": {name: value for name, value in record.resolved.items() if value is not None},
        "keys": record.keys,
        "comparability": {domain: agreed.key for domain, agreed in record.comparability.items()},
        "environment": {name: value for name, value in record.environment.plain().items() if value is not None},
        "cost": record.cost.plain(),
        "artifacts": [artifact.plain() for artifact in record.artifacts],
        "notes": list(record.notes),
        "cells": [_cell(cell) for cell in row.cells],
    }


def _cell(cell: LoadedRecord) -> dict[str, Json]:
    record = cell.record
    return {
        "seed": record.seed,
        "status": record.status,
        "cell": record.cell,
        "created": record.created,
        "record": cell.path,
        "error": record.error.plain() if record.error else None,
    }
