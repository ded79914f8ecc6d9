"""What `latentbench bench gpu` found: one JSON file per device in `results/gpu/`, and the page that is made of them.

The page, `docs/gpu.md`, is a pure function of these files; dry runs have no place in it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentbench.core.errors import InvalidInput
from latentbench.core.text import folded, plural, visible

CHECKOUT = Path(__file__).parents[3]
"""Where the code stands; the tests too, unless it was installed without them."""
FORMAT, SCHEMA = "latentbench-gpu", 1
MACHINE = "machine"
"""The part that tells of the device and the versions."""
OutcomeName = Literal["ok", "failed", "timed out", "not available"]


@dataclass(frozen=True)
class Figure:
    """One number, or text, that a part found."""

    what: str
    value: float | str | bool | None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Teller:
    """Where a part puts what it finds."""

    file: Path
    device: str

    @property
    def small(self) -> bool:
        """Whether this is a dry run."""
        return self.device == "cpu"

    def found(self, what: str, value: float | str | bool | None, unit: str = "", note: str = "") -> None:
        """Notes one figure for good."""
        self._append(asdict(Figure(what, value, unit, note)))

    def ended(self, outcome: str, detail: str = "") -> None:
        """Notes how the part ended."""
        self._append({"outcome": outcome, "detail": detail})

    def _append(self, data: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass
class PartReport:
    """What became of a part."""

    outcome: OutcomeName
    seconds: float = 0.0
    detail: str = ""
    """Why it is not ok."""
    figures: list[Figure] = field(default_factory=list)
    """Also those of a part that failed later."""


@dataclass
class GpuReport:
    """The content of `results/gpu/<device>.json`."""

    device: str
    """As it was asked for."""
    small: bool
    """A dry run, whose figures mean nothing."""
    commit: str | None
    """Of the checkout, with `+` where files differ from it; None where git does not know."""
    date: str
    parts: dict[str, PartReport] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the device, as its driver says it."""
        return str(self.machine.get("device", self.device))

    @property
    def machine(self) -> dict[str, Any]:
        """What was found of the device."""
        found = self.parts.get(MACHINE)
        return {figure.what: figure.value for figure in found.figures} if found else {}

    @property
    def failed(self) -> bool:
        """Whether any part fell, or hung. What is not available is no failure."""
        return any(part.outcome in ("failed", "timed out") for part in self.parts.values())

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}

    def file(self, folder: Path) -> Path:
        """Where it stands below `folder`."""
        return folder / f"{'dry-run-' * self.small}{slug(self.name)}.json"

    def adopt(self, folder: Path) -> None:
        """Takes what an earlier report of this device found with the same commit."""
        if self.file(folder).is_file():
            earlier = GpuReport.read(self.file(folder))
            if earlier.commit == self.commit:
                self.parts = earlier.parts | self.parts

    def write(self, folder: Path) -> Path:
        """Replaces the file of this device in `folder`."""
        path = self.file(folder)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(self.plain(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        draft.replace(path)
        return path

    @staticmethod
    def read(path: Path) -> GpuReport:
        """The report in a file. Raises InvalidInput when it is none."""
        try:
            data = json.loads(path.read_text("utf-8"))
            if (data.pop("format"), data.pop("schema")) != (FORMAT, SCHEMA):
                raise ValueError("another format")
            parts = {
                name: PartReport(**{**part, "figures": [Figure(**figure) for figure in part["figures"]]})
                for name, part in data.pop("parts").items()
            }
            return GpuReport(**data, parts=parts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{path} is no report of `latentbench bench gpu`: {error}; run it again") from error


def slug(name: str) -> str:
    """A device's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


TESTED = ("passed", "failed", "skipped")
"""How the note of a figure begins that is a test and not a figure."""


def line(name: str, part: PartReport) -> str:
    """One line about a part, and the end of why it is not ok below it."""
    text = f"{name:<13} {part.outcome:<13} {part.seconds:6.1f} s  {_counts(part)}"
    return "\n".join([text, *(f"    {visible(said)}" for said in part.detail.splitlines()[-3:])])


def summary(report: GpuReport) -> str:
    """The table at the end: every figure, then every part."""
    lines = [f"{visible(report.name)}, commit {report.commit or 'unknown'}, {report.date}", ""]
    for name, part in report.parts.items():
        if name != MACHINE:
            lines += [f"{visible(figure.what):<84} {_shown(figure)}" for figure in _numbers(part)]
    return "\n".join([*lines, "", *(line(name, part) for name, part in report.parts.items())])


def _numbers(part: PartReport) -> list[Figure]:
    return [figure for figure in part.figures if not figure.note.startswith(TESTED)]


def _counts(part: PartReport) -> str:
    notes = [figure.note for figure in part.figures]
    counts = {kind: sum(note.startswith(kind) for note in notes) for kind in TESTED}
    if any(counts.values()):
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return plural(len(notes), "figure")


def _shown(figure: Figure) -> str:
    value = figure.value
    number = (
        f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,}" if _whole(value) else value
    )
    text = "" if value is None else f"{number} {figure.unit}".strip()
    return visible(" ".join(filter(None, [text, f"({figure.note})" if figure.note else ""])))


def _whole(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def reports(folder: Path) -> list[GpuReport]:
    """The reports in a folder in the order of their files, without those of dry runs. Raises InvalidInput for another file."""
    found = [GpuReport.read(path) for path in sorted(folder.glob("*.json"))]
    return [report for report in found if not report.small]


_INTRODUCTION = """# On a GPU

Generated from the files of `results/gpu/` by `make gpu-page`. `make gpu` measures all of it in at most eight minutes on a
machine with an Nvidia GPU, without network and without an installation if need be:

```sh
make gpu                        # installs into .venv first
make gpu GPU_PYTHON=python3     # with the packages that this Python has; a part that lacks one is "not available"
python3 -m latentbench.bench.gpu --only kernels --only hierarchical     # with `harness` on PYTHONPATH
```

Every part runs in a process of its own with a time limit, and `results/gpu/<device>.json` is written after each: what falls or
hangs costs its own figures. The exit code is 1 if a part failed or timed out. `--device cpu` tries all of it in a small size.
"""
_NONE = """**There are no figures yet.** Nobody has had a GPU at hand: the kernels have run in Triton's interpreter and been compiled
for GPUs, but neither they nor training, NCCL or reinforcement learning have run on one.
"""


def page(found: list[GpuReport]) -> str:
    """docs/gpu.md."""
    return "\n".join([_INTRODUCTION, *([part for report in found for part in _section(report)] or [_NONE])])


def _section(report: GpuReport) -> list[str]:
    """One device: versions, what became of every part, and its figures."""
    versions = [f"{_cell(figure.what)} {_cell(_shown(figure))}" for figure in report.parts[MACHINE].figures[1:]]
    parts = [
        f"| {_cell(name)} | {part.outcome} | {part.seconds:.1f} | {_cell(_counts(part))} | {_cell(part.detail[-200:])} |"
        for name, part in report.parts.items()
    ]
    figures = [
        f"| {_cell(figure.what)} | {_cell(_shown(figure))} |"
        for name, part in report.parts.items()
        if name != MACHINE
        for figure in _numbers(part)
    ]
    head = f"## {_cell(report.name)}\n\nCommit `{report.commit or 'unknown'}`, {report.date}; {', '.join(versions)}.\n"
    outcomes = "\n".join(["| part | outcome | seconds | | |", "| --- | --- | --: | --- | --- |", *parts, ""])
    return [head, outcomes, "\n".join(["| figure | |", "| --- | --- |", *figures, ""])]


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return folded(visible(text)).replace("|", "\\|")
