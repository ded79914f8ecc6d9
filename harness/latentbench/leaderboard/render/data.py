"""The board as data: nested JSON, and a long table with one line per number (CSV, Parquet)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.load import suite_of
from latentbench.leaderboard.render.text import chosen_columns

if TYPE_CHECKING:
    import pandas as pd

FIELDS = (
    "group", "suite", "spec", "label", "status", "seeds", "expected_seeds", "complete", "domain", "metric", "version",
    "budget", "trained_k", "params", "unit", "higher_is_better", "value", "low", "high", "seed_sd", "n", "units", "standing", "p_holm", "reason",
    "badges", "wall_seconds", "records",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes text that starts so for a formula, and a formula can run programs: such cells get a quote in front."""
_WHOLE = ["version", "budget", "trained_k", "n"]
_REAL = ["value", "low", "high", "seed_sd", "p_holm", "wall_seconds"]
_TRUTH = ["higher_is_better", "complete"]


def as_json(board: Board, columns: Sequence[str] | None = None) -> str:
    """The board as JSON, without columns that were not asked for."""
    groups = [_group(group, columns) for group in board.groups]
    data = {"schema": 1, "groups": groups, "superseded": board.superseded, "problems": board.problems}
    return json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def as_csv(board: Board, columns: Sequence[str] | None = None) -> str:
    """One line per row and column; a row without numbers has one line."""
    return _frame(board, columns, _cell).to_csv(index=False, lineterminator="\n")


def as_parquet(board: Board, columns: Sequence[str] | None = None) -> bytes:
    """The same table as Parquet, with types, and text as it stands."""
    import io

    buffer = io.BytesIO()
    _frame(board, columns, _joined).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _frame(board: Board, columns: Sequence[str] | None, cell: Callable[[Json], Json]) -> pd.DataFrame:
    import pandas as pd  # slow to import, and only needed here

    lines = [line for group in board.groups for row in group.rows for line in _lines(group, row, columns)]
    frame = pd.DataFrame([{k: cell(v) for k, v in line.items()} for line in lines], columns=list(FIELDS))
    kinds = dict.fromkeys(_WHOLE, "Int64") | dict.fromkeys(_REAL, "Float64") | dict.fromkeys(_TRUTH, "boolean")
    return frame.astype(kinds)


def _group(group: RowGroup, columns: Sequence[str] | None) -> dict[str, Json]:
    return {
        "key": group.key,
        "title": group.title,
        "domains": group.domains,
        "facts": dict(group.facts),
        "differs": [{"path": f.path, "here": f.here, "there": f.there} for f in group.differs],
        "rows": [
            {**_identity(row), "numbers": [_number(group, row, c) for c in chosen_columns(group, columns)]}
            for row in group.rows
        ],
    }


def _identity(row: Row) -> dict[str, Json]:
    return {
        "suite": suite_of(row.spec),
        "spec": row.spec,
        "label": row.label,
        "status": row.status,
        "seeds": [cell.record.seed for cell in row.measured],
        "expected_seeds": list(row.expected),
        "complete": row.complete,
        "badges": [badge.text for badge in row.badges],
        "wall_seconds": row.wall_seconds,
        "records": [cell.path for cell in row.cells],
    }


def _number(group: RowGroup, row: Row, column: Column) -> dict[str, Json]:
    value, verdict = row.values.get(column.key), group.verdict(row, column)
    return {
        "domain": column.domain, "metric": column.metric, "version": column.version, "budget": column.budget,
        "trained_k": value.trained_k if value else None, "params": column.params, "unit": column.unit, "higher_is_better": column.higher_is_better,
        "value": value.value if value else None, "low": value.low if value else None,
        "high": value.high if value else None, "seed_sd": value.sd if value else None,
        "n": value.n if value else None, "units": (value.units or None) if value else None, "standing": verdict.standing, "p_holm": verdict.p,
        "reason": (value.reason if value else "not measured") or verdict.reason,
    }  # fmt: skip


def _lines(group: RowGroup, row: Row, columns: Sequence[str] | None) -> Iterator[dict[str, Json]]:
    identity = {"group": group.title, **_identity(row)}
    for column in chosen_columns(group, columns) if row.measured else [None]:
        line = identity | (_number(group, row, column) if column else {})
        yield {name: line.get(name) for name in FIELDS}


def _joined(value: Json) -> Json:
    return ";".join(map(str, value)) if isinstance(value, list) else value


def _cell(value: Json) -> Json:
    shown = _joined(value)
    return f"'{shown}" if isinstance(shown, str) and shown.startswith(_FORMULA) else shown
