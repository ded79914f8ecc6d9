"""The board as one HTML file that works offline: nothing is fetched, and the page's policy forbids it."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.leaderboard.board import Board, Column, Group, Row
from harness.leaderboard.evidence import Source
from harness.leaderboard.render.text import DECIMALS, plain
from harness.leaderboard.table import suite_of
from harness.leaderboard.ties import pairwise
from harness.section import Json

HERE = Path(__file__).parent
SCRIPTS = ("state.js", "table.js", "plots.js", "drawer.js", "app.js")
PLOTS = (("l0", "explained_variance.centred"), ("l0", "cross_entropy.increase"))
"""Horizontal and vertical metric of each Pareto plot."""
SHARED = ("resolved", "comparability", "environment", "cost", "artifacts")
PAIRWISE_ROWS = 100
"""Largest group whose ties the page judges anew for what a filter leaves; beyond, ties refer to all rows."""


def page(board: Board, source: Source | None = None) -> str:
    """The report."""
    script = Markup("'use strict';\n(() => {\n" + "\n".join(_read(name) for name in SCRIPTS) + "\n})();")
    style = Markup(_read("style.css"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("template.html").render(
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        board=embedded(_board(board, source or Source())),
        provenance=embedded(_provenances(board)),
        rows=sum(len(group.rows) for group in board.groups),
        groups=len(board.groups),
        superseded=board.superseded,
        problems=board.problems,
    )


def embedded(data: Json) -> Markup:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate cannot be written as UTF-8; it can only come from a damaged record.
    return Markup(text.encode("utf-8", "replace").decode())


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _board(board: Board, source: Source) -> Json:
    return {"decimals": DECIMALS, "groups": [_group(group, source) for group in board.groups]}


def _group(group: Group, source: Source) -> Json:
    position = {column.key: index for index, column in enumerate(group.columns)}
    small = len(group.rows) <= PAIRWISE_ROWS
    pairs = pairwise(group.rows, group.shown, source) if small else {}
    return {
        "title": group.title,
        "domains": group.domains,
        "facts": group.facts,
        "differs": [{"path": f.path, "here": f.here, "there": f.there} for f in group.differs],
        "columns": [_column(column, column in group.shown) for column in group.columns],
        "rows": [_row(group, row) for row in group.rows],
        "pairs": {position[key]: [[_short(p) for p in line] for line in table] for key, table in pairs.items()},
        "plots": [plot for domain in group.domains for plot in _plots(group, domain)],
    }


def _plots(group: Group, domain: str) -> list[Json]:
    trained = {c.metric: i for i, c in enumerate(group.columns) if c.domain == domain and c.budget is None}
    return [{"domain": domain, "x": trained[x], "y": trained[y]} for x, y in PLOTS if {x, y} <= trained.keys()]


def _column(column: Column, shown: bool) -> Json:
    return {
        "key": column.key,
        "label": column.label,
        "id": f"{column.metric}@{column.version}",
        "domain": column.domain,
        "params": column.params,
        "unit": column.unit,
        "better": column.higher_is_better,
        "shown": shown,
    }


def _row(group: Group, row: Row) -> Json:
    return {
        "id": row.id,
        "suite": suite_of(row.spec),
        "spec": row.spec,
        "label": row.label,
        "variant": _variant(row),
        "status": row.status,
        "complete": row.complete and bool(row.measured),
        "seeds": f"{len(row.measured)}/{len(row.expected)}",
        "badges": [[badge.kind, badge.text, badge.detail] for badge in row.badges],
        "cost": row.wall_seconds,
        "values": [_value(group, row, column) for column in group.columns] if row.measured else [],
    }


def _value(group: Group, row: Row, column: Column) -> list[Json]:
    """[value, low, high, sd, n, standing, p, reason] without the trailing nulls, for thousands of rows make megabytes."""
    value, verdict = row.values[column.key], group.verdict(row, column)
    whole: list[Json] = [value.value, value.low, value.high, value.sd, value.n, verdict.standing, _short(verdict.p)]
    whole.append(value.reason or verdict.reason)
    while whole and whole[-1] is None:
        whole.pop()
    return whole


def _variant(row: Row) -> str:
    sae = row.newest.record.resolved.get("sae")
    if not isinstance(sae, dict):
        return ""
    kind: Literal["load", "variant"] = "load" if "load" in sae else "variant"
    found = sae.get(kind)
    return str(found.get("adapter", "loaded") if isinstance(found, dict) else found or "")


def _short(p: float | None) -> float | None:
    return None if p is None else float(f"{p:.3g}")


def _provenances(board: Board) -> Json:
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
        "command": f"latentbench run {shlex.quote(plain(record.spec.path))}",
        "spec": record.spec.plain(),
        "resolved": record.resolved,
        "keys": record.keys,
        "comparability": {domain: agreed.key for domain, agreed in record.comparability.items()},
        "environment": record.environment,
        "cost": record.cost.plain(),
        "artifacts": [artifact.plain() for artifact in record.artifacts],
        "cells": [
            {
                "seed": cell.record.seed,
                "status": cell.record.status,
                "cell": cell.record.cell,
                "created": cell.record.created,
                "record": cell.path,
                "error": cell.record.error.plain() if cell.record.error else None,
            }
            for cell in row.cells
        ],
    }
