"""Options and report of the fault suite.

`pytest tests/faults -m slow --seeds 100 --report tests/faults/REPORT.md` runs the long part and writes down what was run.
Tests tell how much they did with `record_property(name, count)`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import furnish
from tests.support import forked
from tests.support.project import Workbench
from tests.support.report import page

RUN = ("run", "--device", "cpu", "--executor", "inline")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--seeds", type=int, default=100, help="Random faults per kind in the slow part.")
    group.addoption("--specs", type=int, default=10_000, help="Malformed specs in the slow part.")
    group.addoption("--tasks", type=int, default=2000, help="Hostile task files in the slow part.")
    group.addoption("--folders", type=int, default=500, help="Spoilt model folders in the slow part.")
    group.addoption("--records", type=int, default=600, help="Hostile records in the slow part.")
    group.addoption("--report", type=Path, default=None, help="Write what was run to this file.")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> int:
    """How many random faults of a kind the slow part tries."""
    return int(request.config.getoption("--seeds"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workbench:
    """A run without a fault."""
    bench = project(tmp_path_factory.mktemp("undisturbed") / "project", tiny_model)
    done = forked.call(bench, *RUN)
    assert done.code == 0, done.err
    return bench


def project(root: Path, model: Path) -> Workbench:
    """Two cells on a tiny model."""
    bench = furnish(root, model)
    experiment(bench)
    return bench


def experiment(bench: Workbench, **changes: Any) -> None:
    """The spec of the two cells, or one that differs from it."""
    bench.spec(matrix={"sae.k": [2, 4]}, metrics=["cross_entropy", "explained_variance"], **changes)


@pytest.fixture
def fresh(tmp_path: Path, tiny_model: Path) -> Workbench:
    """The same before its first run."""
    return project(tmp_path / "project", tiny_model)


class Ledger:
    """Collects what tests counted, also those of other folders, and writes it down beside what earlier runs did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        self.outcomes: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = {
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
                "counts": dict(report.user_properties),
                "day": time.strftime("%Y-%m-%d", time.gmtime()),
                "machine": self.machine,
            }

    def pytest_sessionfinish(self) -> None:
        """Writes the counts as JSON and as a page."""
        counts = self.path.with_suffix(".json")
        before = json.loads(counts.read_text("utf-8")) if counts.exists() else {}
        merged = dict(sorted({**before, **self.outcomes}.items()))
        counts.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", "utf-8")
        self.path.write_text(page(merged), "utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Hooks of a conftest see only its own folder; a plug-in sees all."""
    path = config.getoption("--report", default=None)
    if path is not None:
        config.pluginmanager.register(Ledger(path), "ledger of faults")
