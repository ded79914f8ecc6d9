"""A throw-away project with its own specs, data and a tiny model, used through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latentbench.cli.app import run
from latentbench.records.record import Record
from latentbench.records.results import read_record
from latentbench.spec.project import Project, find_project

SOURCES = [Path(__file__).parents[2] / name for name in ("harness", "adapters")]
"""So that a command tests the checkout it stands in, wherever the package was installed from."""

WORDS = [
    "ore",
    "salt",
    "acid",
    "base",
    "gas",
    "metal",
    "water",
    "heat",
    "glass",
    "flask",
    "stir",
    "cool",
    "boil",
    "melt",
    "weigh",
    "filter",
    "dry",
    "pour",
    "wash",
    "mix",
]


def documents(count: int, start: int = 0, length: int = 24) -> list[str]:
    """Texts that differ, made of few words, the same every time."""
    return [
        " ".join(WORDS[(7 * i + 3 * j + (i * j) % 5) % len(WORDS)] for j in range(length))
        for i in range(start, start + count)
    ]


def random_words(count: int, length: int = 30, seed: int = 1) -> list[str]:
    """Texts of random words of the tiny model's vocabulary."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, length)) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


EXPERIMENT: dict[str, Any] = {
    "model": {"adapter": "transformers", "id": "./model"},
    "layer": 0,
    "dataset": {
        "train": {"adapter": "files", "path": "data/train.jsonl", "tokens": 1024, "context": 16},
        "eval": {"lab": {"adapter": "files", "path": "data/eval.jsonl", "documents": 6, "context": 16}},
    },
    "sae": {"variant": "topk", "width": 32, "k": 4},
    "training": {"batch": 64, "buffer": 128},
    "metrics": ["cross_entropy", "explained_variance"],
}


def merged(base: Any, changes: Mapping[str, Any]) -> Any:
    """`base` with values replaced at dotted paths."""
    made = json.loads(json.dumps(base))
    for path, value in changes.items():
        *way, last = path.split(".")
        place = made
        for step in way:
            place = place.setdefault(step, {})
        place[last] = value
    return made


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Workbench:
    """A project folder and what tests do with it."""

    root: Path
    python_path: tuple[Path, ...] = ()

    @property
    def project(self) -> Project:
        return find_project(start=self.root)

    def write(self, path: str, content: str | bytes) -> Path:
        """Any file of the project."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return target

    def spec(self, name: str = "mine", /, **changes: Any) -> Path:
        """A spec of the shared experiment; `sae__k=8` writes `sae.k`."""
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return self.write(f"specs/{name}.yaml", yaml.safe_dump(merged(EXPERIMENT, dotted), sort_keys=False))

    def records(self, results: str = "results") -> dict[str, Record]:
        """Every record by `name[label][seed]`."""
        found = [read_record(path) for path in sorted((self.root / results / "records").rglob("*.json"))]
        return {f"{r.spec.name}[{r.label}][{r.seed}]": r for r in found}

    def weights(self) -> dict[str, bytes]:
        """The bytes of every trained SAE by key."""
        folder = self.root / "results/store/objects/sae"
        return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/*/sae.safetensors"))}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        path = os.pathsep.join(map(str, (*self.python_path, *SOURCES)))
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.Popen(
            [sys.executable, "-c", "from latentbench.cli import main; main()", *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def process(self, *arguments: str) -> Done:
        """The same, waited for."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return Done(process.returncode, out, err)


def numbers(record: Record) -> dict[str, Any]:
    """A record without what may differ between two computations of the same cell: times, host and cost."""
    return record.model_copy(update={"environment": {}, "cost": None, "created": ""}).model_dump(
        mode="json", by_alias=True, exclude={"environment", "cost", "created", "digest"}
    )


__all__ = ["EXPERIMENT", "Done", "Workbench", "documents", "merged", "numbers", "run", "write_jsonl"]
