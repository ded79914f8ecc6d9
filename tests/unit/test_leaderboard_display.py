"""Headings, the default table and what comparisons name belong to the metric that declares a number, wherever it is from."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from latentbench.core.plugins import plugins
from latentbench.leaderboard.board import Column
from latentbench.leaderboard.build import default_columns
from latentbench.leaderboard.render import terminal
from latentbench.metrics.base import Display, Metric
from latentbench.metrics.recorded import display_of
from latentbench.metrics.value import MetricValue
from tests.unit.leaderboard_factory import Planted, rewritten, write

MODULE = """
from typing import ClassVar, Literal

from latentbench.metrics.base import Display, Metric


class Elegance(Metric):
    metric: Literal["elegance"] = "elegance"
    displays = {"elegance.score": Display("Elegance", 15, against="l0"), "elegance.detail": Display("Detail of elegance")}
"""
ENTRY_POINTS = """[latentbench.metrics]
elegance = elegant:Elegance
broken = elegant_but_absent:Broken
"""


def _column(metric: str, domain: str | None = "general", budget: int | None = None, params: str = "") -> Column:
    return Column(metric, 1, domain, budget, params, "fraction", True)


def _declared() -> dict[str, Display]:
    return {id: display for metric in plugins("metrics").values() for id, display in metric.displays.items()}  # type: ignore[attr-defined]


def test_a_metric_shows_numbers_of_its_own_and_no_two_are_headed_or_placed_alike() -> None:
    for name, metric in plugins("metrics").items():
        assert issubclass(metric, Metric)
        assert {id.partition(".")[0] for id in metric.displays} <= {name}
    declared = _declared()
    assert max(Counter(display.heading for display in declared.values()).values()) == 1
    places = [display.headline for display in declared.values() if display.headline is not None]
    assert len(places) == len(set(places)) > 15


@pytest.mark.parametrize(
    "name", ["explained_variance", "cross_entropy", "l0", "dead_fraction", "mse", "cosine", "norm_ratio"]
)
def test_what_is_shown_is_what_is_measured(name: str) -> None:
    fields = {"estimators": ("centred", "residual_variance", "token_ratio", "uncentred")}
    metric = plugins("metrics")[name].model_validate(fields if name == "explained_variance" else {})
    assert isinstance(metric, Metric)
    assert metric.displays.keys() == {number.id for number in (*metric.numbers(), *metric.tallies())}


def test_a_number_without_a_display_is_headed_by_its_id() -> None:
    assert display_of("saebench_scr.scr_metric") is None
    assert _column("saebench_scr.scr_metric").label == "saebench_scr.scr_metric"
    assert _column("explained_variance.as_imported").label == "explained_variance.as_imported"
    assert _column("explained_variance.centred", budget=8).label == "EV centred @8"
    assert _column("training.memory").label == "Training memory"


def test_the_default_table_has_headlines_else_one_number_of_every_family() -> None:
    l0, mse, kl, speed = (_column(name) for name in ("l0", "mse", "cross_entropy.kl", "training.tokens_per_second"))
    assert default_columns([l0, mse, kl, speed]) == (l0,)
    other = _column("cross_entropy.clean")
    assert default_columns([mse, kl, other, speed]) == (mse, kl)
    assert default_columns([speed]) == (speed,)
    probed = [_column("sparse_probing.accuracy", params=f"latents={k}") for k in (1, 2, 4, 8)]
    assert default_columns(probed) == tuple(probed[:3])


def test_a_metric_of_another_package_stands_in_the_default_table_beside_a_broken_one(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "elegant-1.0.dist-info").mkdir(parents=True)
    (site / "elegant.py").write_text(MODULE)
    (site / "elegant-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: elegant\nVersion: 1.0\n")
    (site / "elegant-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    results = tmp_path / "results"
    for name in ("a/one", "a/two"):
        write(results, Planted(name=name, domains=("general",)))
        path = next((results / "records" / name).glob("*.json"))
        data = json.loads(path.read_text())
        added = [
            MetricValue(id=id, version=1, domain="general", value=0.5, unit="fraction", higher_is_better=True)
            for id in ("broken.number", "elegance.detail", "elegance.score")
        ]
        metrics = [*data["metrics"], *(value.model_dump(mode="json") for value in added)]
        resolved = {
            **data["resolved"],
            "metrics": [{"metric": "broken"}, {"metric": "elegance"}, *data["resolved"]["metrics"]],
        }
        rewritten(path, metrics=metrics, resolved=resolved)
    code = "import sys; from pathlib import Path; from latentbench.leaderboard.api import leaderboard; "
    code += (
        "print(leaderboard(Path(sys.argv[1]), 'md')); print(leaderboard(Path(sys.argv[1]), 'md', columns=['all'])); "
    )
    code += "print(leaderboard(Path(sys.argv[1]), 'html'))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(results)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=True,
    )
    short, whole = [line for line in run.stdout.splitlines() if line.startswith("| spec")]
    heads = [head.strip() for head in short.split("|")[2:]]
    assert heads[:4] == ["L0", "Elegance", "EV centred", "CE increase"]
    assert "broken.number" not in short
    assert {"Detail of elegance", "broken.number", "KL recovered"} <= {head.strip() for head in whole.split("|")}
    # The page draws it against what it names, as it does numbers of ours.
    embedded = re.search(r'<script[^>]*id="board"[^>]*>(.*?)</script>', run.stdout, re.S)
    assert embedded is not None
    (group,) = json.loads(embedded[1])["groups"]
    drawn = {tuple(group["columns"][plot[axis]]["label"] for axis in ("x", "y")) for plot in group["plots"]}
    assert {("L0", "Elegance"), ("L0", "EV centred"), ("L0", "CE increase")} == drawn
    # A broken neighbour costs the others no interval either.
    assert "± 0." in run.stdout


@pytest.mark.parametrize(
    "headings", [("spec", "L0", "Loss rec.\n(zero)", "notes"), ("a domain (128 documents)", "EV\n(v2,\nx)")]
)
def test_tables_of_lines_are_drawn_as_rich_draws_them(headings: tuple[str, ...]) -> None:
    cells = [
        ["quickstart/topk sae.k=8", "a", "指数"],
        ["● 0.946 ±<0.001", "–", "1.0"],
        ["12", "3.456", ""],
        ["1 older", "", "2 seeds"],
    ]
    columns = [
        terminal.Shown(heading, cells[place], words=heading == "notes" or place == 0)
        for place, heading in enumerate(headings)
    ]
    drawn = {}
    for name, table in (("lines", terminal._table(columns, 200)), ("rich", terminal.folded(columns))):
        console = Console(file=io.StringIO(), width=200, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(table)
        drawn[name] = capture.get().rstrip("\n")
    assert isinstance(terminal._table(columns, 200), terminal.Lines)
    assert drawn["lines"] == drawn["rich"]
    assert not isinstance(terminal._table(columns, 20), terminal.Lines), "rich folds what does not fit"
