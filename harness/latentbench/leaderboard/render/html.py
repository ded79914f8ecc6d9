"""The board as one HTML file that works offline, and how any page becomes such a file.

Scripts, style and data stand in the file, and its policy forbids to fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latentbench.core.spec_model import Json
from latentbench.core.text import visible
from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.evidence import StatisticsReader
from latentbench.leaderboard.render.page_data import board_data, pieces
from latentbench.leaderboard.render.text import decimals_of, number

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


SCRIPTS = (
    "dom.js", "data.js", "state.js", "ties.js", "table.js", "window.js", "findings.js", "axes.js", "plots.js", "curves.js",
    "drawer.js", "app.js",
)  # fmt: skip
PLAIN = 20
"""Rows of each group that a browser without scripts shows."""


def page(
    board: Board, source: StatisticsReader | None = None, *, curves: Json | None = None, pages: Json | None = None
) -> str:
    """The report. `curves` and `pages` are by row id, as `curves_of` and `pages_of` of `row_details` give them."""
    source = source or StatisticsReader()
    later = [("curves", curves or {}), ("pages", pages or {}), *pieces(board, source)]
    source.keep()
    return offline_page(
        "template.html",
        SCRIPTS,
        board=embedded(board_data(board)),
        # After the script, so that the table stands before a browser has come to the end of a large file.
        later=[(name, embedded(data)) for name, data in later],
        plain=[_plain(group) for group in board.groups],
        rows=sum(len(group.rows) for group in board.groups),
        groups=len(board.groups),
        superseded=board.superseded,
        problems=board.problems,
    )


def _plain(group: RowGroup) -> Json:
    """The best rows of a group as text, for browsers without scripts."""
    decimals = [decimals_of(group, column) for column in group.shown]
    return {
        "title": visible(group.title),
        "rows": len(group.rows),
        "columns": [visible(", ".join(filter(None, (group.heading(c), c.domain)))) for c in group.shown],
        "best": [
            (
                visible(row.title),
                [number(_value(row, c), c.unit, n) for c, n in zip(group.shown, decimals, strict=True)],
            )
            for row in group.rows[:PLAIN]
        ],
    }


def _value(row: Row, column: Column) -> float | None:
    return row.values[column.key].value if row.measured else None
