"""Specs as text for tests of the language alone: nothing they name is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbench.core.errors import SpecError
from latentbench.spec.cells import SpecFile, load_spec

PLAIN = """\
model: {adapter: transformers, id: ./model}
layer: 1
dataset:
  train: {adapter: files, path: a.jsonl, tokens: 1000, context: 16}
  eval:
    lab: {adapter: files, path: b.jsonl, documents: 8}
sae: {variant: topk, width: 64, k: 4}
metrics: [cross_entropy]
"""


def write(root: Path, **files: str) -> None:
    """Spec files by name; `__` stands for a folder."""
    for name, text in files.items():
        path = root / "specs" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def load(root: Path, name: str = "s") -> SpecFile:
    return load_spec(root / "specs" / f"{name}.yaml", root)


def said(root: Path, name: str = "s") -> list[str]:
    """The problems of a spec, one line each, without the folder of specs."""
    with pytest.raises(SpecError) as caught:
        load(root, name)
    return [str(problem).removeprefix("specs/") for problem in caught.value.problems]
