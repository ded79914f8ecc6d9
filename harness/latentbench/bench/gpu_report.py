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
from latentbench.core.text import plural, visible

FORMAT, SCHEMA = "latentbench-gpu", 1
MACHINE = "machine"
"""The part that tells of the device and the versions."""
OutcomeName = Literal["ok", "failed", "timed out", "not available"]


@dataclass(frozen=True)
class Finding:
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
        """Notes one finding for good."""
        self._append(asdict(Finding(what, value, unit, note)))

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
    findings: list[Finding] = field(default_factory=list)
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
        return {finding.what: finding.value for finding in found.findings} if found else {}

    @property
    def failed(self) -> bool:
        """Whether any part fell, or hung. What is not available is no failure."""
        return any(part.outcome in ("failed", "timed out") for part in self.parts.values())

    def write(self, folder: Path) -> Path:
        """Replaces the file of this device in `folder`."""
        path = folder / f"{'dry-run-' * self.small}{slug(self.name)}.json"
        draft = path.with_suffix(".part")
        content = {"format": FORMAT, "schema": SCHEMA, **asdict(self)}
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
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
                name: PartReport(**{**part, "findings": [Finding(**finding) for finding in part["findings"]]})
                for name, part in data.pop("parts").items()
            }
            return GpuReport(**data, parts=parts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{path} is no report of `latentbench bench gpu`: {error}; run it again") from error


def slug(name: str) -> str:
    """A device's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def line(name: str, part: PartReport) -> str:
    """One line about a part, and why it is not ok below it."""
    text = f"{name:<13} {part.outcome:<13} {part.seconds:6.1f} s  {plural(len(part.findings), 'figure')}"
    shown = part.detail.splitlines()[-3:] if part.detail else []
    return "\n".join([text, *(f"              {visible(said)}" for said in shown)])


def summary(report: GpuReport) -> str:
    """The table at the end: every part, and every number of those that measure."""
    lines = [f"{report.name}, commit {report.commit or 'unknown'}, {report.date}", ""]
    lines += [line(name, part) for name, part in report.parts.items()]
    return "\n".join(lines)
