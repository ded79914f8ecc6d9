"""Import: what other tools wrote is read under our names, and what is not ours keeps its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.load import load
from tests.support.foreign import LM_EVAL, SAE_LENS, SAEBENCH, changed, numbers, one, put, taken


def test_saebench_numbers_get_our_names_and_what_is_not_ours_its_own(tmp_path: Path) -> None:
    record = one(tmp_path, SAEBENCH)
    found = numbers(record)
    values = {id: (metric.value, metric.higher_is_better) for id, metric in found.items()}
    assert values["explained_variance.token_ratio"] == (0.71, True)
    assert values["explained_variance.as_imported"] == (0.974, None)
    assert "explained_variance.centred" not in values
    assert values["cross_entropy.loss_recovered_zero"] == (0.98, True)
    assert values["cross_entropy.kl"] == (0.31, False)
    assert values["cross_entropy.increase"] == (pytest.approx(0.2), False)
    assert values["dead_fraction"] == (pytest.approx(0.04), False)
    assert found["dead_fraction"].params == {"tokens": 4096000}
    assert values["mse.as_imported"] == (0.02, None)
    assert values["l0"] == (80.5, None)
    assert {m.domain for m in record.metrics} == {"openwebtext"}
    assert record.imported is not None
    assert (record.imported.tool, record.imported.version) == ("saebench", "8042bb38aaaa")
    assert record.spec.name == "imported/saebench/sae_bench_pythia160m"
    assert record.created == "2025-01-16T04:00:00+00:00"
    assert any("mixes up" in warning for warning in record.warnings)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("eval_config/exclude_special_tokens_from_reconstruction", False, "Special tokens"),
        ("sae_lens_release_id", "custom_sae", "custom_sae"),
        ("eval_result_metrics/reconstruction_quality/explained_variance_legacy", 1.008, "exceeds 1"),
        ("eval_result_metrics/sparsity/l0", -1, "NaN"),
        ("eval_type_id", "tpp", "2605.18229"),
    ],
)
def test_known_anomalies_are_flagged(tmp_path: Path, path: str, value: Any, says: str) -> None:
    record = one(tmp_path, changed(SAEBENCH, path, value))
    assert any(says in warning for warning in record.warnings)


def test_class_defaults_are_flagged(tmp_path: Path) -> None:
    data = changed(SAEBENCH, "eval_config/n_eval_reconstruction_batches", 10)
    data["eval_config"]["n_eval_sparsity_variance_batches"] = 1
    assert any("class defaults" in warning for warning in one(tmp_path, data).warnings)
    assert not any("class defaults" in w for w in one(tmp_path, SAEBENCH, "other.json").warnings)


@pytest.mark.parametrize("missing", [-1, float("nan"), 10**400])
def test_minus_one_and_nan_are_missing_numbers(tmp_path: Path, missing: float) -> None:
    path = "eval_result_metrics/model_performance_preservation/ce_loss_with_sae"
    found = numbers(one(tmp_path, changed(SAEBENCH, path, missing)))
    assert found["cross_entropy.sae"].value is None
    assert found["cross_entropy.sae"].null_reason
    assert "cross_entropy.increase" not in found


def test_sae_lens_json_list_and_csv_give_the_same_numbers(tmp_path: Path) -> None:
    single = one(tmp_path, SAE_LENS)
    second = changed(SAE_LENS, "sae_id", "blocks.9.hook_resid_pre")
    listed = taken(tmp_path / "two", put(tmp_path, [SAE_LENS, second], "all_eval_results.json"))
    assert [item.record.label for item in listed] == ["blocks.8.hook_resid_pre", "blocks.9.hook_resid_pre"]
    table = io.StringIO()
    pd.json_normalize([SAE_LENS, second]).to_csv(table, index=False)
    rows = taken(tmp_path / "three", put(tmp_path, table.getvalue(), "all_eval_results.csv"))
    for records in ([single], [listed[0].record], [rows[0].record]):
        assert {k: m.value for k, m in numbers(records[0]).items()} == {k: m.value for k, m in numbers(single).items()}
    assert numbers(single)["explained_variance.centred"].value == 0.87


def test_explained_variance_of_old_sae_lens_is_not_ranked(tmp_path: Path) -> None:
    record = one(tmp_path, changed(SAE_LENS, "eval_cfg/library_version", "6.20.1"))
    assert numbers(record)["explained_variance.as_imported"].higher_is_better is None
    assert any("not ranked" in warning for warning in record.warnings)


def test_lm_eval_tasks_become_domains_over_problems(tmp_path: Path) -> None:
    record = one(tmp_path, LM_EVAL)
    found = numbers(record)
    strict = found["lm_eval.exact_match[strict-match]"]
    assert (strict.value, strict.domain, strict.n, strict.higher_is_better) == (0.5, "gsm8k", 625, True)
    assert strict.ci is not None
    assert strict.ci.low == pytest.approx(0.5 - 1.96 * 0.02, abs=1e-4)
    assert found["lm_eval.perplexity"].ci is None
    assert found["lm_eval.perplexity"].higher_is_better is False
    assert record.comparability["gsm8k"].fields["n-shot"] == 5
    assert any("limit 625" in warning for warning in record.warnings)
    board = board_of(load(tmp_path / "results"))
    assert board.groups[0].counts["gsm8k"] == "625 problems"


def test_a_standard_error_beyond_all_floats_gives_no_interval(tmp_path: Path) -> None:
    record = one(tmp_path, changed(LM_EVAL, "results/gsm8k/exact_match_stderr,strict-match", 1e308))
    assert numbers(record)["lm_eval.exact_match[strict-match]"].ci is None


def test_a_cached_steered_run_is_flagged(tmp_path: Path) -> None:
    config = {**LM_EVAL["config"], "model": "steered", "use_cache": "cache"}
    record = one(tmp_path, {**LM_EVAL, "config": config})
    assert any("steering vector" in warning for warning in record.warnings)
    assert record.label == "steered"
