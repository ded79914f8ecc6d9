"""Result files as other tools write them, and ways to take them in."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from latentbench.exchange.importing import Imported, import_files
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record

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
