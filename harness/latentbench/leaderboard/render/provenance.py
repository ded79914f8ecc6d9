"""What exactly was run for each row, for the drawer of the report."""

from __future__ import annotations

import json

from latentbench.leaderboard.board import Board, Row
from latentbench.leaderboard.load import Loaded
from latentbench.section import Json

SHARED = ("resolved", "comparability", "environment", "cost", "artifacts")


def provenances(board: Board) -> Json:
    """By row id; what many rows share (environment, keys) stands once in `shared`, and rows refer to it by number."""
    shared: dict[str, int] = {}
    rows: dict[str, Json] = {}
    for row in (row for group in board.groups for row in group.rows):
        facts = _provenance(row)
        for name in SHARED:
            facts[name] = shared.setdefault(json.dumps(facts[name], ensure_ascii=False, allow_nan=False), len(shared))
        rows[row.id] = facts
    return {"rows": rows, "shared": [json.loads(text) for text in shared]}


def _provenance(row: Row) -> dict[str, Json]:
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
        "cells": [_cell(cell) for cell in row.cells],
    }


def _cell(cell: Loaded) -> dict[str, Json]:
    record = cell.record
    return {
        "seed": record.seed,
        "status": record.status,
        "cell": record.cell,
        "created": record.created,
        "record": cell.path,
        "error": record.error.plain() if record.error else None,
    }
