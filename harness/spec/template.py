"""A new spec, started from one that exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

_EXTENDS = re.compile(r"^(extends:\s*)(\S+)\s*$", re.MULTILINE)
_NAME = re.compile(r"^name:.*\n", re.MULTILINE)


def rewritten(source: Path, target: Path) -> str:
    """The text of `source` as a spec at `target`: its parents' paths still lead to them, its name is its own."""

    def moved(match: re.Match[str]) -> str:
        parent = (source.parent / match[2].strip("'\"")).resolve()
        return match[1] + os.path.relpath(parent, target.parent)

    text = _NAME.sub("", source.read_text("utf-8"))
    return f"# Started from {source.stem}.\n" + _EXTENDS.sub(moved, text)
