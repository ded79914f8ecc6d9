"""The board as one HTML file that works offline, and how any page becomes such a file.

Scripts, style and data stand in the file, and its policy forbids to fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.inference import StatisticsReader, pairwise
from latentbench.leaderboard.load import suite_of
from latentbench.leaderboard.render.text import DECIMALS, decimals_of
from latentbench.leaderboard.row_details import provenances
from latentbench.metrics.base import Display
from latentbench.metrics.recorded import display_of

HERE = Path(__file__).parent


def offline_page(
    template: str, scripts: Iterable[str], styles: Iterable[str] = ("style.css",), folder: Path = HERE, **context: Json
) -> str:
    """The template with scripts, styles and their hashes for the page's policy; files not in `folder` are those here."""
    # Template and scripts are ours and stand unescaped; whatever a record says comes in as data and is escaped or embedded.
    script = Markup("'use strict';\n(() => {\n" + "\n".join(_read_beside(name, folder) for name in scripts) + "\n})();")
    style = Markup("\n".join(_read_beside(name, folder) for name in styles))
    hashes = {"script_hash": _hash(script), "style_hash": _hash(style)}
    return _templates(folder).get_template(template).render(script=script, style=style, **hashes, **context)


def embedded(data: Json) -> Markup:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate cannot be written as UTF-8; it can only come from a damaged record.
    return Markup(text.encode("utf-8", "replace").decode())


@cache
def _templates(folder: Path) -> Environment:
    loader = FileSystemLoader([folder, HERE])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _read_beside(name: str, folder: Path) -> str:
    path = folder / name
    return (path if path.is_file() else HERE / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


SCRIPTS = ("dom.js", "state.js", "table.js", "axes.js", "plots.js", "curves.js", "drawer.js", "app.js")
PAIRWISE_ROWS = 100
"""Largest group whose ties the page judges anew for what a filter leaves; beyond, ties refer to all rows."""


def page(
    board: Board, source: StatisticsReader | None = None, *, curves: Json | None = None, pages: Json | None = None
) -> str:
    """The report. `curves` and `pages` are by row id, as `curves_of` and `pages_of` of `row_details` give them."""
    return offline_page(
        "template.html",
        SCRIPTS,
        board=embedded(_board(board, source or StatisticsReader())),
        provenance=embedded(provenances(board)),
        curves=embedded(curves or {}),
        pages=embedded(pages or {}),
        rows=sum(len(group.rows) for group in board.groups),
        groups=len(board.groups),
        superseded=board.superseded,
        problems=board.problems,
    )


def variant_of(row: Row) -> str:
    """What made the thing that is measured: a steering method, `flow`, an SAE variant or where an SAE was loaded from."""
    resolved = row.newest.record.resolved
    if isinstance(steering := resolved.get("steering"), dict):
        return str(steering.get("method", "steering"))
    if isinstance(resolved.get("flow"), dict):
        return "flow"
    sae = resolved.get("sae")
    if not isinstance(sae, dict):
        return ""
    found = sae.get("load" if "load" in sae else "variant")
    return str(found.get("adapter", "loaded") if isinstance(found, dict) else found or "")


def _board(board: Board, source: StatisticsReader) -> Json:
    return {"decimals": DECIMALS, "groups": [_group(group, source) for group in board.groups]}


def _group(group: RowGroup, source: StatisticsReader) -> Json:
    position = {column.key: index for index, column in enumerate(group.columns)}
    small = len(group.rows) <= PAIRWISE_ROWS
    pairs = pairwise(group.rows, group.shown, source) if small else {}
    units = _units(group)
    return {
        "title": group.title,
        "domains": group.domains,
        "counts": group.counts,
        "facts": group.facts,
        "differs": [{"path": f.path, "here": f.here, "there": f.there} for f in group.differs],
        "columns": [_column(group, column, units.get(column.key)) for column in group.columns],
        "rows": [_row(group, row) for row in group.rows],
        "pairs": {position[key]: [[_short(p) for p in line] for line in table] for key, table in pairs.items()},
        "plots": [*_plots(group), *_scale_plots(group)],
    }


def _units(group: RowGroup) -> dict[str, str]:
    """Column key to what its numbers are counted in."""
    measured = [row for row in group.rows if row.measured]
    return {key: value.units for row in reversed(measured) for key, value in row.values.items() if value.n is not None}


def _plots(group: RowGroup) -> Iterator[Json]:
    """Trade-offs, each with the domain it stands under, its axes as column positions."""
    trained = {domain: _trained(group, domain) for domain in group.domains}
    for domain, here in trained.items():
        for metric, y in sorted(here.items(), key=itemgetter(1)):
            if (x := _shown(metric).against) in here:
                yield {"domain": domain, "x": here[x], "y": y, "log": True}
            else:
                costs = [there[x] for there in trained.values() if x in there]
                yield from ({"domain": domain, "x": cost, "y": y, "log": False} for cost in costs)


def _scale_plots(group: RowGroup) -> Iterator[Json]:
    """Numbers such as accuracy against the scale at which a vector is added, where rows differ in it."""
    if len({scale for row in group.rows if (scale := _scale(row)) is not None}) > 1:
        for domain in group.domains:
            drawn = (y for metric, y in _trained(group, domain).items() if _shown(metric).by_scale)
            yield from ({"domain": domain, "x": "scale", "y": y, "log": False} for y in drawn)


def _shown(metric: str) -> Display:
    return display_of(metric) or Display(metric)


def _trained(group: RowGroup, domain: str) -> dict[str, int]:
    """Metric to the position of its first column on a domain, as trained."""
    own = [(i, c) for i, c in enumerate(group.columns) if c.domain == domain and c.budget is None]
    return {column.metric: i for i, column in reversed(own)}


def _scale(row: Row) -> float | None:
    steering: Any = row.newest.record.resolved.get("steering")
    scale = steering.get("scale") if isinstance(steering, dict) else None
    return float(scale) if isinstance(scale, int | float) and not isinstance(scale, bool) else None


def _column(group: RowGroup, column: Column, units: str | None) -> Json:
    return {
        "key": column.key,
        "label": group.heading(column),
        "id": f"{column.metric}@{column.version}",
        "domain": column.domain,
        "params": column.params,
        "unit": column.unit,
        "decimals": decimals_of(group, column),
        "units": units,
        "better": column.higher_is_better,
        "shown": column in group.shown,
    }


def _row(group: RowGroup, row: Row) -> Json:
    scale = _scale(row)
    return {
        "id": row.id,
        "suite": suite_of(row.spec),
        "spec": row.spec,
        "label": row.label,
        "variant": variant_of(row),
        "status": row.status,
        "complete": row.complete and bool(row.measured),
        "seeds": f"{len(row.measured)}/{len(row.expected)}",
        "badges": [[badge.kind, badge.text, badge.detail] for badge in row.badges],
        "cost": row.wall_seconds,
        **({} if scale is None else {"scale": scale}),
        "values": [_value(group, row, column) for column in group.columns] if row.measured else [],
    }


def _value(group: RowGroup, row: Row, column: Column) -> list[Json]:
    """[value, low, high, sd, n, standing, p, reason, trained k] without the trailing nulls, for thousands of rows make megabytes."""
    value, verdict = row.values[column.key], group.verdict(row, column)
    whole: list[Json] = [value.value, value.low, value.high, value.sd, value.n, verdict.standing, _short(verdict.p)]
    whole += [value.reason or verdict.reason, value.trained_k]
    while whole and whole[-1] is None:
        whole.pop()
    return whole


def _short(p: float | None) -> float | None:
    return None if p is None else float(f"{p:.3g}")
