"""A new spec, started from one that exists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from latentbench.spec.nodes import parse, read_text

GUIDE = """\
# Started from {source}. What else it could say: `latentbench list variants` (models, datasets, metrics, …) and
# specs/README.md; where each value comes from: `latentbench show --origins` with this file.
"""
_NAME = re.compile(r"^name:.*\n", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")


def rewritten(source: Path, target: Path, started_from: str) -> str:
    """The text of `source` as a spec at `target`: its parents' paths still lead to them, its name is its own.

    What it was `started_from` stands at its top, beside where to find what else it could say.

    Raises SpecError when `source` cannot be read.
    """
    text = read_text(source, source.name)
    parse(text, source.name)
    for item in reversed(list(_parents(text))):
        path = os.path.relpath((source.parent / item.value).resolve(), target.parent)
        written = path if _PLAIN.fullmatch(path) else json.dumps(path)
        text = text[: item.start_mark.index] + written + text[item.end_mark.index :]
    return GUIDE.format(source=started_from) + _NAME.sub("", text)


def _parents(text: str) -> Iterator[yaml.ScalarNode]:
    """The scalars under `extends` in the order of the file."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "extends":
            items = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (item for item in items if isinstance(item, yaml.ScalarNode))
