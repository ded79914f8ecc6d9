"""One HTML file that works offline: scripts, style and data stand in it, and its policy forbids to fetch anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latentbench.section import Json

HERE = Path(__file__).parent


def offline_page(
    template: str, scripts: Iterable[str], styles: Iterable[str] = ("style.css",), folder: Path = HERE, **context: Json
) -> str:
    """The template with scripts, styles and their hashes for the page's policy; files not in `folder` are those here."""
    script = Markup("'use strict';\n(() => {\n" + "\n".join(_read(name, folder) for name in scripts) + "\n})();")
    style = Markup("\n".join(_read(name, folder) for name in styles))
    hashes = {"script_hash": _hash(script), "style_hash": _hash(style)}
    return _environment(folder).get_template(template).render(script=script, style=style, **hashes, **context)


def embedded(data: Json) -> Markup:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate cannot be written as UTF-8; it can only come from a damaged record.
    return Markup(text.encode("utf-8", "replace").decode())


@cache
def _environment(folder: Path) -> Environment:
    loader = FileSystemLoader([folder, HERE])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _read(name: str, folder: Path) -> str:
    path = folder / name
    return (path if path.is_file() else HERE / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
