"""How long the command line takes before it does anything: `validate` and `plan` in fresh processes.

They are timed on the specs of the project around the current folder, and on many specs that are generated: sweeps over the
pocket model like those that ship, each of the same number of cells. Seconds are the best of several processes, so what else runs
on the machine counts as little as it can. `doctor`, which promises to take less than a minute anywhere, is timed once while every
processor has other work.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from latentbench.core.errors import NotAvailable
from latentbench.core.resources import processors

CELLS = 20
"""Of each generated spec: five values and two seeds of two cases."""
_PARENT = """\
model: {adapter: pocket}
layer: 3
dataset:
  train: {adapter: pocket, domain: general, split: train, tokens: 600_000, context: 128}
  eval:
    general: {adapter: pocket, domain: general, split: eval, documents: 128, context: 128}
    chemistry: {adapter: pocket, domain: chemistry, split: eval, documents: 128, context: 128}
training: {batch: 1024, lr: 2.0e-3, buffer: 65_536}
metrics: [explained_variance, cross_entropy, l0, dead_fraction]
"""
_HEAD = """\
extends: ../_base/pocket.yaml
description: Which of two is better at width {width}, and does it stay so at every size?
seeds: [0, 1]
"""
_KINDS = (
    """\
metrics: [explained_variance: {{budgets: [4, 8]}}, cross_entropy: {{budgets: [4, 8]}}, l0, dead_fraction]
sae: {{width: {width}}}
matrix: {{sae.k: [8, 16, 24, 32, 48]}}
cases:
  - {{label: topk, sae: {{variant: topk}}}}
  - {{label: hierarchical, sae: {{variant: hierarchical_topk}}}}
""",
    """\
dataset:
  base: {{adapter: pocket, domain: general, split: train, tokens: 600_000, context: 128}}
  train: {{domain: chemistry}}
sae: {{width: {width}, k: 16}}
matrix: {{training.lr: [5.0e-4, 1.0e-3, 2.0e-3, 4.0e-3, 8.0e-3]}}
cases:
  - {{label: base, sae: &base {{variant: topk, width: {width}, k: 16}}}}
  - {{label: boosted, sae: {{variant: boosted, base: *base, width: 256, k: 5}}}}
""",
    """\
layer: null
dataset: {{train: null, eval: {{chemistry: null}}}}
training: null
metrics: [reasoning_accuracy: {{task: pocket_problems, limit: {width}}}, capability_cost]
matrix: {{steering.scale: [0.25, 0.5, 1.0, 1.5, 2.0]}}
cases:
  - {{label: trained, steering: {{method: rl, problems: {{adapter: pocket, split: train}}, steps: 20, prompts: 16, samples: 8}}}}
  - {{label: prefix, steering: {{method: prefix, text: " To"}}}}
""",
)
"""An SAE trained alone, one on top of another, and steering."""


@dataclass(frozen=True)
class StartTiming:
    """The best of several starts of a command."""

    command: str
    specs: int | None
    """Generated specs that it read; None for those of the project."""
    user_seconds: float
    """Of the processor, in Python and native code."""
    wall_seconds: float


def run(specs: int, rounds: int) -> Iterator[StartTiming]:
    """Times `--help`, `validate` and `plan` of the current project and of so many generated specs, and `doctor`.

    Raises NotAvailable where a command fails.
    """
    for command in ("--help", "validate", "plan"):
        yield _best(command, None, Path.cwd(), rounds)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), specs)
        for command in ("validate", "plan"):
            yield _best(command, specs, Path(folder), rounds)
    with _busy():
        yield _best("doctor", None, Path.cwd(), 1)


@contextmanager
def _busy() -> Iterator[None]:
    """While open, every processor has something else to do."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processors())]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def generate(project: Path, specs: int) -> None:
    """Writes a project of so many specs of `CELLS` cells, no two of which want the same."""
    for folder in ("specs/_base", "specs/generated"):
        (project / folder).mkdir(parents=True)
    (project / "specs/_base/pocket.yaml").write_text(_PARENT, "utf-8")
    for number in range(specs):
        text = (_HEAD + _KINDS[number % len(_KINDS)]).format(width=257 + number)
        (project / f"specs/generated/{number:04}.yaml").write_text(text, "utf-8")


def _best(command: str, specs: int | None, folder: Path, rounds: int) -> StartTiming:
    times = [_started(command, folder) for _ in range(rounds)]
    return StartTiming(command, specs, min(user for user, _ in times), min(wall for _, wall in times))


def _started(command: str, folder: Path) -> tuple[float, float]:
    """User and wall seconds of one process."""
    words = [sys.executable, "-c", "from latentbench.cli import main; main()", command]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise NotAvailable(f"`latentbench {command}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, wall


def _environment() -> Mapping[str, str]:
    # As an installed program starts: from byte code that the first process left.
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
