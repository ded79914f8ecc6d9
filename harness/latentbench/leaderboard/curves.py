"""Training curves of rows, where the store still holds the SAEs they were trained into."""

from __future__ import annotations

import math
from pathlib import Path

from latentbench.errors import DamagedArtifact, StoreError
from latentbench.leaderboard.board import Board
from latentbench.leaderboard.load import Loaded
from latentbench.section import Json
from latentbench.store.files import read_json
from latentbench.store.store import Store

SHOWN = ("normalised", "l0", "dead")
"""Columns of the curve that are shown: squared error over the batch's variance, active latents, dead latents."""
ROWS = 500
"""Rows whose curves go into a page; thousands would make it slow to open."""
POINTS = 60
_TRAINING = "training.json"  # latentbench.sae.artifact names it too, and imports torch


def curves_of(board: Board, store: Path | None) -> dict[str, Json]:
    """By row id and then by seed (`seed 0`), the steps and the shown columns; rows without a curve are left out."""
    if store is None:
        return {}
    rows = [row for group in board.groups for row in group.rows if row.measured][:ROWS]
    opened = Store(store)
    found = {row.id: {name: c for cell in row.measured for name, c in _of_cell(opened, cell)} for row in rows}
    return {row: curves for row, curves in found.items() if curves}


def _of_cell(store: Store, cell: Loaded) -> list[tuple[str, Json]]:
    keys = {name: key for name, key in cell.record.keys.items() if store.has("sae", key)}
    named = [(f"seed {cell.record.seed}" + (f", {name}" if len(keys) > 1 else ""), key) for name, key in keys.items()]
    return [(name, curve) for name, key in named if (curve := _curve(store.folder("sae", key) / _TRAINING))]


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
