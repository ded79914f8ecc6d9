"""Doors in: what other tools wrote is read, malformed files are refused whole, and our own exports come back the same."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.errors import InvalidInput, RefusedFile
from harness.exchange import saebench
from harness.exchange.importing import Imported, import_files
from harness.exchange.writing import write_folder
from harness.leaderboard import leaderboard
from harness.leaderboard.load import load
from harness.leaderboard.table import board_of
from harness.record import MetricValue, Record
from tests.unit.leaderboard_factory import HOSTILE, Planted, write

SAEBENCH: dict[str, Any] = {
    "eval_type_id": "core",
    "eval_config": {
        "model_name": "pythia-160m-deduped", "llm_dtype": "float32", "batch_size_prompts": 16,
        "n_eval_reconstruction_batches": 200, "n_eval_sparsity_variance_batches": 2000,
        "dataset": "Skylion007/openwebtext", "context_size": 128,
        "exclude_special_tokens_from_reconstruction": True,
    },
    "eval_id": "0b1a", "datetime_epoch_millis": 1737000000000,
    "eval_result_metrics": {
        "model_behavior_preservation": {"kl_div_score": 0.97, "kl_div_with_ablation": 10.5, "kl_div_with_sae": 0.31},
        "model_performance_preservation": {
            "ce_loss_score": 0.98, "ce_loss_with_ablation": 12.4, "ce_loss_with_sae": 3.6, "ce_loss_without_sae": 3.4,
        },
        "reconstruction_quality": {
            "explained_variance": 0.974, "explained_variance_legacy": 0.71, "mse": 0.02, "cossim": 0.91,
        },
        "shrinkage": {"l2_norm_in": 30.1, "l2_norm_out": 28.0, "l2_ratio": 0.93, "relative_reconstruction_bias": 1.0},
        "sparsity": {"l0": 80.5, "l1": 310.0},
        "token_stats": {"total_tokens_eval_reconstruction": 409600, "total_tokens_eval_sparsity_variance": 4096000},
        "misc_metrics": {"freq_over_1_percent": 0.1, "frac_alive": 0.96},
    },
    "eval_result_details": [{"index": 0, "feature_density": 0.1}],
    "sae_bench_commit_hash": "8042bb38aaaa", "sae_lens_id": "layer_8/width_4k", "sae_lens_release_id": "sae_bench_pythia160m",
    "sae_lens_version": "5.4.2", "sae_cfg_dict": {"hook_name": "blocks.8.hook_resid_post", "model_name": "pythia-160m-deduped"},
    "eval_result_unstructured": None,
}  # fmt: skip
SAE_LENS: dict[str, Any] = {
    "unique_id": "res-jb-blocks.8", "sae_set": "gpt2-small-res-jb", "sae_id": "blocks.8.hook_resid_pre",
    "eval_cfg": {
        "context_size": 128, "dataset": "Skylion007/openwebtext", "library_version": "6.54.12", "git_hash": "abc",
        "n_eval_reconstruction_batches": 10, "batch_size_prompts": 16,
    },
    "metrics": {
        "model_behavior_preservation": {"kl_div_score": 0.99},
        "model_performance_preservation": {"ce_loss_score": 0.985, "ce_loss_with_sae": 3.5, "ce_loss_without_sae": 3.3},
        "reconstruction_quality": {"explained_variance": 0.87, "explained_variance_legacy": 0.82, "mse": 51.0, "cossim": 0.95},
        "sparsity": {"l0": 60.25, "l1": 120.0},
        "token_stats": {"total_tokens_eval_sparsity_variance": 2048},
    },
    "feature_metrics": {"feature_density": [0.1, 0.2]},
    "sae_cfg": {"metadata": {"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre"}},
}  # fmt: skip
LM_EVAL: dict[str, Any] = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.02,
            "exact_match,flexible-extract": 0.55, "exact_match_stderr,flexible-extract": 0.02, "sample_len": 625,
        },
        "lambada_openai": {"perplexity,none": 12.5, "perplexity_stderr,none": "N/A", "acc,none": 0.4, "acc_stderr,none": 0.01},
    },
    "configs": {"gsm8k": {"task": "gsm8k"}}, "versions": {"gsm8k": 3.0, "lambada_openai": 1.0}, "n-shot": {"gsm8k": 5},
    "higher_is_better": {"gsm8k": {"exact_match": True}, "lambada_openai": {"perplexity": False, "acc": True}},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 625}},
    "config": {"model": "hf", "model_args": "pretrained=gpt2,dtype=float32", "limit": 625.0, "use_cache": None},
    "date": 1737000000.5, "lm_eval_version": "0.4.13", "model_name": "gpt2", "task_hashes": {"gsm8k": "ff"},
}  # fmt: skip


def put(folder: Path, data: Any, name: str = "result.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def taken(results: Path, *files: Path) -> list[Imported]:
    results.mkdir(exist_ok=True)
    return import_files(results, files)


def one(tmp_path: Path, data: Any, name: str = "result.json") -> Record:
    (made,) = taken(tmp_path / "results", put(tmp_path, data, name))
    assert made.path.is_file()
    return made.record


def numbers(record: Record) -> dict[str, MetricValue]:
    return {m.id + "".join(f"[{v}]" for v in m.params.values() if isinstance(v, str)): m for m in record.metrics}


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(data)
    *way, last = path.split("/")
    place = made
    for step in way:
        place = place[step]
    place[last] = value
    return made


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


MALFORMED: dict[str, tuple[str, Any]] = {
    "no json": ("a.json", "{"),
    "deep": ("a.json", "[" * 100_000),
    "other": ("a.json", {"hello": 1}),
    "empty list": ("a.json", []),
    "number": ("a.json", 3),
    "text for a number": ("a.json", changed(SAEBENCH, "eval_result_metrics/sparsity/l0", "many")),
    "list for an object": ("a.json", changed(SAEBENCH, "eval_result_metrics/sparsity", [1])),
    "no category": ("a.json", changed(SAEBENCH, "eval_result_metrics", {})),
    "no dataset": ("a.json", changed(SAE_LENS, "eval_cfg/dataset", None)),
    "true for a number": ("a.json", changed(SAE_LENS, "metrics/sparsity/l0", True)),
    "no numbers": ("a.json", {**LM_EVAL, "results": {"gsm8k": {"alias": "x"}}}),
    "tasks no objects": ("a.json", {**LM_EVAL, "results": {"gsm8k": 1}}),
    "lone surrogate": ("a.json", json.dumps(changed(SAEBENCH, "sae_lens_id", "x\ud800"))),
    "deep configuration": ("a.json", changed(SAEBENCH, "eval_config", json.loads('{"a":' * 200 + "1" + "}" * 200))),
    "deep columns": ("a.csv", "unique_id,eval_cfg.dataset,eval_cfg.n_eval" + ".a" * 200 + "\na,b,1\n"),
    "no csv": ("a.csv", "a,b\n1,2\n"),
    "empty csv": ("a.csv", ""),
    "binary csv": ("a.csv", "\x00\x01"),
    "clashing columns": ("a.csv", "unique_id,eval_cfg.dataset,metrics,metrics.l0\na,b,1,2\n"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_whole(tmp_path: Path, kind: str) -> None:
    name, data = MALFORMED[kind]
    good, bad = put(tmp_path, SAEBENCH, "good.json"), put(tmp_path, data, name)
    with pytest.raises(RefusedFile) as caught:
        taken(tmp_path / "results", good, bad)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "results").rglob("*")), "nothing may be half-written"


def test_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no file"):
        taken(tmp_path / "results", tmp_path / "none.json")


def test_a_failing_write_takes_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.exchange import importing

    real, calls = importing.write_json, []

    def failing(path: Path, value: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError("disk full")
        real(path, value)

    monkeypatch.setattr(importing, "write_json", failing)
    with pytest.raises(OSError, match="disk full"):
        taken(tmp_path / "results", put(tmp_path, SAEBENCH, "a.json"), put(tmp_path, LM_EVAL, "b.json"))
    assert not list((tmp_path / "results").rglob("*.json"))


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    file = put(tmp_path, SAEBENCH)
    first, again = taken(tmp_path / "results", file)[0], taken(tmp_path / "results", file)[0]
    assert (first.new, again.new) == (True, False)
    assert first.path == again.path


def test_hostile_names_stay_inside_the_records(tmp_path: Path) -> None:
    data = changed(changed(SAEBENCH, "sae_lens_release_id", "../../../../etc"), "sae_lens_id", HOSTILE)
    (made,) = taken(tmp_path / "results", put(tmp_path, data))
    assert made.path.resolve().is_relative_to((tmp_path / "results/records/imported").resolve())
    page = leaderboard(tmp_path / "results", "html")
    assert "<img" not in page


def test_imported_rows_stand_apart_and_say_so(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("openwebtext",)))
    taken(results, put(tmp_path, SAEBENCH))
    board = board_of(load(results))
    assert len(board.groups) == 2
    (imported,) = [group for group in board.groups if group.title.endswith("imported")]
    assert imported.rows[0].badges[0].kind == "imported"
    assert "imported: saebench 8042bb38aaaa" in leaderboard(results, "md")
    assert "imported: saebench" in leaderboard(results, "terminal")


def test_our_saebench_export_comes_back_with_the_same_numbers(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("general",)), Planted(name="a/other", error=0.3, domains=("general",)))
    assert write_folder(load(results), "saebench", tmp_path / "out") == 2
    files = sorted((tmp_path / "out").iterdir())
    back = taken(tmp_path / "back", *files)
    measured = {cell.record.spec.name: cell.record for cell in load(results).loaded}
    for item in back:
        original = measured[item.record.spec.name.removeprefix("imported/latentbench/")]
        assert item.record.metrics == original.metrics
        assert item.record.comparability == original.comparability, "the key follows from the facts, so it agrees"
    taken(results, *files)
    (group,) = board_of(load(results)).groups
    assert len(group.rows) == 4, "ranked with the measured rows, because the comparability key agrees"


def test_every_domain_and_seed_of_an_export_comes_back_onto_the_board(tmp_path: Path) -> None:
    """A file holds one domain: it must not pass for a newer version of the file of another."""
    write(tmp_path / "results", *[Planted(seed=seed) for seed in range(3)])
    write_folder(load(tmp_path / "results"), "saebench", tmp_path / "out")
    taken(tmp_path / "back", *sorted((tmp_path / "out").iterdir()))
    boards = [board_of(load(tmp_path / name)) for name in ("results", "back")]
    assert boards[1].superseded == ()
    means = [{key: v.value for g in b.groups for r in g.rows for key, v in r.values.items()} for b in boards]
    assert means[1].keys() == means[0].keys()
    assert means[1] == pytest.approx(means[0], rel=1e-12)


def test_tasks_in_files_of_their_own_do_not_replace_each_other(tmp_path: Path) -> None:
    tasks = [{**LM_EVAL, "results": {task: LM_EVAL["results"][task]}} for task in ("gsm8k", "lambada_openai")]
    files = [put(tmp_path, data, f"{number}.json") for number, data in enumerate(tasks)]
    taken(tmp_path / "results", *files, put(tmp_path, {**tasks[0], "date": 1738000000.5}, "newer.json"))
    board = board_of(load(tmp_path / "results"))
    assert {domain for group in board.groups for domain in group.domains} == {"gsm8k", "lambada_openai"}
    assert len(board.superseded) == 1, "the same task measured alike a second time is a newer version"


def test_a_changed_fact_costs_the_comparability(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("general",)))
    write_folder(load(results), "saebench", tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    data = json.loads(file.read_text())
    data["eval_result_unstructured"]["latentbench"]["comparability"]["fields"]["context"] = 256
    (item,) = taken(results, put(tmp_path, data))
    assert item.record.comparability["general"].fields["imported"] == "saebench"
    assert len(board_of(load(results)).groups) == 2


def test_our_export_reads_as_saebench_without_our_part(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("general",)))
    (cell,) = load(results).loaded
    data = saebench.write(cell.record, "general")
    record = one(tmp_path, {**data, "eval_result_unstructured": None})
    ours, theirs = numbers(cell.record), numbers(record)
    for id in ("cross_entropy.kl_recovered", "cross_entropy.loss_recovered_zero", "cross_entropy.sae", "l0"):
        assert theirs[id].value == ours[id].value
