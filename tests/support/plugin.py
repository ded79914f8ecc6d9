"""Installs the faulty variant into a folder that a process finds through PYTHONPATH."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import faulty


@dataclass(frozen=True)
class Plugin:
    """A folder with the plug-in and the fault it is told to have."""

    folder: Path

    def break_with(self, do: str, k: int, step: int = 5) -> None:
        """From the next step on the SAE with `k` latents breaks at `step`."""
        (self.folder / "fault.json").write_text(json.dumps({"do": do, "k": k, "step": step}))

    def mend(self) -> None:
        """Removes the fault; what hangs goes on."""
        for name in ("fault.json", "reached"):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def reached(self) -> bool:
        """Whether something hangs in the fault now."""
        return (self.folder / "reached").exists()


def install(folder: Path) -> Plugin:
    """The variant `faulty` as an installed package."""
    information = folder / "faulty-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[latentbench.variants]\nfaulty = faulty:FaultyOptions\n")
    shutil.copy(str(faulty.__file__), folder / "faulty.py")
    return Plugin(folder)


def faulty_sae(k: int) -> dict[str, Any]:
    """The section of a faulty SAE."""
    return {"variant": "faulty", "width": 32, "k": k}
