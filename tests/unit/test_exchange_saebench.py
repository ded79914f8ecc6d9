"""Every layout that SAEBench's files had is read; what is older keeps its names and stands apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentbench.core.errors import RefusedFile
from latentbench.exchange.foreign import word
from latentbench.leaderboard.api import leaderboard
from latentbench.records.record import Record
from tests.support.foreign import SAEBENCH, changed, one, put, taken
from tests.support.saebench import (
    ABSORPTION,
    AUTOINTERP,
    BASIC,
    COMMIT,
    CUSTOM,
    INSTANCE,
    LAYOUTS,
    MDL,
    NAME,
    RELEASE,
    SAE,
    TODAY,
)


def values(record: Record) -> dict[str, float | None]:
    return {metric.id: metric.value for metric in record.metrics}


def facts(record: Record) -> dict[str, Any]:
    (agreed,) = record.comparability.values()
    return dict(agreed.fields)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_imported(tmp_path: Path, layout: str) -> None:
    made = taken(tmp_path / "results", put(tmp_path, LAYOUTS[layout]))
    assert made
    for item in made:
        assert item.path.is_file()
        assert item.record.metrics
        assert item.record.imported is not None
        assert item.record.imported.tool == "saebench"
        known = facts(item.record)["evaluation"] == "core"
        assert known or all(metric.id.startswith("saebench_") for metric in item.record.metrics)
        assert known or {metric.higher_is_better for metric in item.record.metrics} == {None}, "never ranked"
    lines = {(item.record.spec.name, item.record.label) for item in made}
    assert len(lines) == len(made), "no result passes for a newer one of another SAE"
    again = taken(tmp_path / "results", put(tmp_path, LAYOUTS[layout]))
    assert [(item.path, item.new) for item in again] == [(item.path, False) for item in made]


def test_all_layouts_stand_on_one_board(tmp_path: Path) -> None:
    files = [put(tmp_path, data, f"{number}.json") for number, data in enumerate(LAYOUTS.values())]
    made = taken(tmp_path / "results", *files)
    page = leaderboard(tmp_path / "results", "md").replace("\\_", "_")
    assert all(item.record.label.split(",")[0] in page for item in made)


def test_a_result_under_a_name_is_that_result(tmp_path: Path) -> None:
    alone = one(tmp_path, AUTOINTERP, "alone.json")
    named = taken(tmp_path / "results", put(tmp_path, LAYOUTS["today, named"], "named.json"))
    assert [item.record.label for item in named] == [f"{SAE},autointerp", "other,autointerp"]
    assert named[0].record.metrics == alone.metrics
    assert named[0].record.comparability == alone.comparability
    assert (named[0].record.spec.name, named[0].record.label) == (alone.spec.name, alone.label)


def test_results_of_an_instance(tmp_path: Path) -> None:
    record = one(tmp_path, INSTANCE)
    assert values(record) == {"saebench_unlearning.unlearning_score": 0.25}
    assert record.imported is not None
    assert record.imported.version == COMMIT[:12]
    assert record.created == "2024-11-02T23:10:40+00:00"
    assert (record.spec.name, record.label) == (f"imported/saebench/{RELEASE}", f"{SAE},unlearning")
    assert record.resolved["model"] == {"id": "toy-70m"}
    named = one(tmp_path, LAYOUTS["eval_results, named"], "named.json")
    assert named.metrics == record.metrics


@pytest.mark.parametrize(
    "date", [None, 5, "", "yesterday", "0001-01-01T00:00:00", "9999-12-31T23:59:59+00:00", "2024-11-02"]
)
def test_any_date_of_an_instance_is_taken_or_left(tmp_path: Path, date: Any) -> None:
    record = one(tmp_path, {**INSTANCE, "date_time": date})
    assert record.created[:4] in ("2024", "9999") or record.created[:4] >= "2025"


def test_numbers_by_letter_are_details(tmp_path: Path) -> None:
    assert values(one(tmp_path, ABSORPTION)) == {"saebench_absorption.mean_absorption_rate": 0.3}


def test_mdl_has_a_number_per_setting(tmp_path: Path) -> None:
    found = [(m.id, m.params, m.value) for m in one(tmp_path, MDL).metrics]
    assert found == [
        (f"saebench_mdl.{id}", {"num_bins": bins}, value)
        for bins in (8, 16)
        for id, value in (("description_length", 100.0 + bins), ("mse_loss", 1.5))
    ]


def test_a_score_without_configuration(tmp_path: Path) -> None:
    record = one(tmp_path, LAYOUTS["autointerp_metrics"])
    assert values(record) == {"saebench_autointerp.autointerp_score": 0.75}
    assert (record.spec.name, record.label) == (f"imported/saebench/{RELEASE}", f"{SAE},autointerp")


def test_results_by_sae_are_one_record_each(tmp_path: Path) -> None:
    first, second = (item.record for item in taken(tmp_path / "results", put(tmp_path, CUSTOM)))
    assert values(first)["saebench_sparse_probing.sae_test_accuracy"] == 0.5
    assert values(second)["saebench_sparse_probing.sae_test_accuracy"] == 0.6
    assert first.label != second.label
    assert first.spec.name == second.spec.name == f"imported/saebench/{RELEASE}"
    assert first.comparability == second.comparability, "they were measured alike"
    how = {"model_name": "toy-70m", "llm_dtype": "float32", "random_seed": 1, "layer": 2}
    assert facts(first)["config"] == how, "which SAEs were measured is no part of how"
    assert any("`custom_eval_results`" in warning for warning in first.warnings)


@pytest.mark.parametrize(
    ("config", "release"),
    [
        ({"selected_saes_dict": {"one": ["x"], "two": ["sae"]}}, "two"),
        ({"selected_saes_dict": {"one": ["x"]}, "sae_release": "three"}, "three"),
        ({"sae_releases": ["four"]}, "four"),
        ({"sae_releases": ["four", "five"]}, "unknown"),
        ({"sae_releases": [["four"]], "selected_saes_dict": 5, "sae_release": {}}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_release_is_what_the_configuration_says(tmp_path: Path, config: dict[str, Any], release: str) -> None:
    data = {"custom_eval_results": {"sae": {"scr_metric_threshold_10": 0.5}}, "custom_eval_config": config}
    assert one(tmp_path, data).spec.name == f"imported/saebench/{release}"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("scr_dir1_threshold_2", "scr"),
        ("tpp_threshold_2_total_metric", "tpp"),
        ("sae_top_5_test_accuracy", "sparse_probing"),
        ("mean_absorption_rate", "absorption"),
        ("relative_overlap", "custom"),
    ],
)
def test_what_was_evaluated_is_told_by_its_numbers(tmp_path: Path, number: str, kind: str) -> None:
    record = one(tmp_path, {"custom_eval_results": {"sae": {number: 0.5}}})
    assert values(record) == {f"saebench_{kind}.{number}": 0.5}


def test_basic_numbers_keep_their_names_and_say_what_was_measured(tmp_path: Path) -> None:
    first, second = (item.record for item in taken(tmp_path / "results", put(tmp_path, BASIC, f"{RELEASE}_data.json")))
    assert values(first) == {
        "saebench_basic.l0": 20.0, "saebench_basic.frac_variance_explained": 0.875, "saebench_basic.loss_original": 3.5,
    }  # fmt: skip
    assert [r.label for r in (first, second)] == [f"resid_post_layer_2-trainer_{n},basic" for n in range(2)]
    assert first.spec.name == f"imported/saebench/{RELEASE}"
    assert (first.resolved["model"], first.resolved["layer"]) == ({"id": "toy-70m"}, "resid_post_layer_2")
    assert facts(first)["config"] == {"n_inputs": 1000}


def test_older_results_are_never_compared_with_todays(tmp_path: Path) -> None:
    today = one(tmp_path, TODAY, "today.json")
    older = {**INSTANCE, "eval_type_id": "sparse_probing", "eval_results": {"sae_test_accuracy": 0.9}}
    then = one(tmp_path, older, "then.json")
    assert facts(today)["config"] == facts(then)["config"]
    assert "layout" not in facts(today)
    assert facts(then)["layout"] == "eval_results"
    assert today.comparability["sparse_probing"].key != then.comparability["sparse_probing"].key


def test_the_caution_on_absorption_is_on_todays_results(tmp_path: Path) -> None:
    record = one(tmp_path, {**TODAY, "eval_type_id": "absorption_first_letter"})
    assert any("tenfold" in warning for warning in record.warnings)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({NAME: AUTOINTERP, "other": {"hello": 1}}, ": other is no result of SAEBench, as others in this file are"),
        ({NAME: AUTOINTERP, "other": {NAME: AUTOINTERP}}, ": other is no result"),
        ({NAME: AUTOINTERP, "other": 5}, ": other is no result"),
        ([SAEBENCH, {"hello": 1}], "[1] is no result of SAEBench"),
        ([SAEBENCH, []], "[1] is no result of SAEBench"),
        ({NAME: changed(AUTOINTERP, "eval_result_metrics", 5)}, f"{NAME[:80]}: eval_result_metrics must be an object"),
        ({NAME: changed(AUTOINTERP, "eval_type_id", None)}, "eval_type_id must be text"),
        ({**INSTANCE, "eval_results": 5}, "eval_results.all must be an object"),
        ({**MDL, "eval_results": [5]}, "eval_results.0 must be an object"),
        ({"custom_eval_results": {"sae": 5}}, "sae must be an object"),
        ({"custom_eval_results": [5]}, "custom_eval_results must be an object"),
        ({"custom_eval_results": {}, "custom_eval_config": 5}, "custom_eval_config must be an object"),
        ({"custom_eval_results": {}}, "holds no result"),
        ({"basic_eval_results": {"sae": None}}, "sae must be an object, not missing"),
        ({"absorption": {"iterations": []}, "core": {}}, "it holds an object with 'absorption', 'core'"),
        ([{"auc_probe": 0.9}] * 26, "it holds a list of 26"),
        ({"eval_type_id": "core"}, "it holds an object with 'eval_type_id'"),
        ({}, "it holds an empty object"),
        (3, "it holds no object but '3'"),
    ],
)
def test_what_is_no_result_is_said_where_it_stands(tmp_path: Path, data: Any, says: str) -> None:
    with pytest.raises(RefusedFile) as caught:
        taken(tmp_path / "results", put(tmp_path, SAEBENCH, "good.json"), put(tmp_path, data, "bad.json"))
    assert str(caught.value).startswith("bad.json")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "results").rglob("*"))


def test_long_names_stay_apart() -> None:
    names = [word("a" * 70 + str(number)) for number in range(3)]
    assert len(set(names)) == 3
    assert all(len(name) == 60 and name.startswith("a" * 51) for name in names)
    assert word("b" * 60) == "b" * 60
