"""Export: tables, logs and runs for other tools hold the numbers of the records, and are whole or not there."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft7Validator

from latentbench.core.errors import InvalidInput, LatentbenchError, NotAvailable
from latentbench.exchange import every_eval_ever
from latentbench.exchange.exporting import publish, write_folder
from latentbench.leaderboard.api import leaderboard, leaderboard_parquet
from latentbench.leaderboard.load import load
from tests.support.every_eval import EVERY_EVAL
from tests.unit.leaderboard_factory import Planted, write


def test_every_eval_ever_holds_every_number_with_its_interval(tmp_path: Path) -> None:
    write(tmp_path, Planted())
    (cell,) = load(tmp_path).loaded
    log = json.loads(json.dumps(every_eval_ever.log(cell), allow_nan=False))
    measured = [m for m in cell.record.metrics if m.value is not None]
    for result, metric in zip(log["evaluation_results"], measured, strict=True):
        assert result["score_details"]["score"] == metric.value
        config = result["metric_config"]
        assert config["metric_id"] == f"latentbench.{metric.id}"
        assert config["lower_is_better"] is (metric.higher_is_better is False)
        assert config["min_score"] <= metric.value <= config["max_score"]
        if metric.ci:
            interval = result["score_details"]["uncertainty"]["confidence_interval"]
            assert (interval["lower"], interval["upper"]) == (metric.ci.low, metric.ci.high)


def test_committed_records_become_valid_every_eval_ever_logs() -> None:
    validator = Draft7Validator(EVERY_EVAL)
    for cell in load(Path(__file__).parents[2] / "results").loaded:
        problems = list(validator.iter_errors(every_eval_ever.log(cell)))
        assert not problems, f"{cell.record.spec.name}: {problems[0].message}"


@pytest.mark.parametrize("without", ["schema_version", "model_info", "evaluation_results"])
def test_the_every_eval_ever_schema_refuses_what_lacks_a_part(tmp_path: Path, without: str) -> None:
    write(tmp_path, Planted())
    (cell,) = load(tmp_path).loaded
    log = {k: v for k, v in every_eval_ever.log(cell).items() if k != without}
    assert not Draft7Validator(EVERY_EVAL).is_valid(log)


def test_parquet_and_csv_hold_the_numbers_of_the_records(tmp_path: Path) -> None:
    write(tmp_path, Planted(), Planted(name="a/lost", status="failed"), Planted(name=f"a/{'=1+1'}"))
    parquet = pd.read_parquet(io.BytesIO(leaderboard_parquet(tmp_path)))
    table = list(csv.DictReader(io.StringIO(leaderboard(tmp_path, "csv"))))
    assert len(parquet) == len(table)
    recorded = {
        (cell.record.spec.name, m.domain, m.id): m.value for cell in load(tmp_path).loaded for m in cell.record.metrics
    }
    for frame_row, text_row in zip(parquet.to_dict("records"), table, strict=True):
        if frame_row["status"] == "failed":
            assert text_row["metric"] == ""
            continue
        value = recorded[frame_row["spec"], frame_row["domain"], frame_row["metric"]]
        assert frame_row["value"] == value
        assert math.isclose(float(text_row["value"]), value, rel_tol=1e-12)
    assert set(parquet["units"].dropna()) == {"documents"}


def test_latex_escapes_what_latex_would_read(tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/x_1&2%$#{}~^\\", label="a<b>"))
    page = leaderboard(tmp_path, "latex")
    assert r"a/x\_1\&2\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in page
    assert page.count(r"\begin{tabular}") == page.count(r"\end{tabular}") == 1
    body = page.split(r"\midrule")[1].split(r"\bottomrule")[0]
    columns = page.split(r"\begin{tabular}{l")[1].split("}")[0]
    assert body.replace(r"\&", "").count("&") == len(columns)


@pytest.mark.parametrize("format", ["every-eval-ever", "saebench"])
def test_folders_are_new_and_whole(tmp_path: Path, format: Any) -> None:
    write(tmp_path / "results", Planted())
    loaded = load(tmp_path / "results")
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidInput, match="exists already"):
        write_folder(loaded, format, tmp_path / "out")
    with pytest.raises(InvalidInput, match="no records"):
        write_folder(loaded, format, tmp_path / "else", suite="nothing")
    assert not (tmp_path / "else").exists()


class Tracker(types.ModuleType):
    """What trackio and wandb have in common."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__("trackio")
        self.refuses, self.runs, self.done = refuses, [], 0

    def init(self, project: str, name: str, config: dict[str, Any]) -> None:
        self.runs.append({"project": project, "name": name, "config": config})

    def log(self, values: dict[str, float]) -> None:
        if self.refuses:
            raise RuntimeError("not logged in")
        self.runs[-1]["values"] = values

    def finish(self) -> None:
        self.done += 1


def test_publishing_logs_one_run_per_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, Planted(), Planted(seed=1), Planted(name="a/lost", status="failed"))
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    assert publish(load(tmp_path), "trackio", "mine") == 2
    assert [run["name"] for run in tracker.runs] == ["quickstart/topk[][0]", "quickstart/topk[][1]"]
    assert tracker.done == 2
    record = next(cell.record for cell in load(tmp_path).loaded if cell.record.status == "ok" and cell.record.seed == 0)
    recorded = {f"{m.domain}/{m.id}": m.value for m in record.metrics if not m.params}
    assert recorded.items() <= tracker.runs[0]["values"].items()


def test_publishing_says_what_is_missing_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, Planted())
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(NotAvailable, match="pip install trackio"):
        publish(load(tmp_path), "trackio", "mine")
    monkeypatch.setitem(sys.modules, "trackio", Tracker(refuses=True))
    with pytest.raises(LatentbenchError, match="not logged in"):
        publish(load(tmp_path), "trackio", "mine")
