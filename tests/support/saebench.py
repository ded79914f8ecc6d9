"""Results as SAEBench wrote them in each layout it had; the values are ours."""

from __future__ import annotations

from typing import Any

from tests.support.foreign import SAEBENCH

RELEASE, SAE = "sae_bench_toy_sweep_topk_ctx128_0101", "blocks.2.hook_resid_post__trainer_3"
NAME = f"{RELEASE}_{SAE}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CONFIG = {"model_name": "toy-70m", "llm_dtype": "float32", "random_seed": 1}

TODAY: dict[str, Any] = {
    "eval_type_id": "sparse_probing", "eval_config": _CONFIG, "eval_id": "1", "datetime_epoch_millis": 1737000000000,
    "eval_result_metrics": {
        "llm": {"llm_test_accuracy": 0.95, "llm_top_1_test_accuracy": None},
        "sae": {"sae_test_accuracy": 0.9, "sae_top_1_test_accuracy": 0.7},
    },
    "eval_result_details": [{"dataset_name": "a", "sae_test_accuracy": 0.9}], "sae_bench_commit_hash": COMMIT,
    "sae_lens_id": SAE, "sae_lens_release_id": RELEASE, "sae_lens_version": "6.0.0",
}  # fmt: skip
AUTOINTERP: dict[str, Any] = {
    **TODAY, "eval_type_id": "autointerp", "eval_result_metrics": {"autointerp": {"autointerp_score": 0.8}},
}  # fmt: skip
INSTANCE: dict[str, Any] = {
    "eval_instance_id": "1", "sae_lens_release": RELEASE, "sae_lens_id": SAE, "eval_type_id": "unlearning",
    "sae_lens_version": "4.0.0", "sae_bench_version": COMMIT, "date_time": "2024-11-02T23:10:40.043419",
    "eval_config": _CONFIG, "eval_results": {"unlearning_score": 0.25}, "eval_artifacts": {"artifacts": "x"},
}  # fmt: skip
ABSORPTION: dict[str, Any] = {
    **INSTANCE, "eval_type_id": "absorption",
    "eval_results": {"absorption_first_letter_a": {"absorption_rate": 0.5}, "mean_absorption_rate": 0.3},
}  # fmt: skip
MDL: dict[str, Any] = {
    **INSTANCE, "eval_type_id": "mdl",
    "eval_results": [
        {"num_bins": bins, "bins": [], "k": None, "description_length": 100.0 + bins, "within_threshold": False, "mse_loss": 1.5}
        for bins in (8, 16)
    ],
}  # fmt: skip
_LONG = "toy_sweep_topk_ctx128_0101/resid_post_layer_2_checkpoints_of_a_long_training/trainer_{}_step_48828"
CUSTOM: dict[str, Any] = {
    "bias_in_bios_results": {_LONG.format(n): {"sae_test_accuracy": 0.1} for n in range(2)},
    "custom_eval_config": {**_CONFIG, "sae_releases": [RELEASE], "selected_saes_dict": {RELEASE: [SAE]}, "layer": 2},
    "custom_eval_results": {
        _LONG.format(n): {"llm_test_accuracy": 0.95, "sae_test_accuracy": 0.5 + n / 10, "sae_top_1_test_accuracy": 0.7}
        for n in range(2)
    },
}  # fmt: skip
BASIC: dict[str, Any] = {
    "sae_config_dictionary_learning": {
        f"toy_sweep_topk_ctx128_0101/resid_post_layer_2/trainer_{n}": {
            "trainer": {"lm_name": "toy-70m", "submodule_name": "resid_post_layer_2", "k": 20}, "buffer": {"ctx_len": 128},
        }
        for n in range(2)
    },
    "basic_eval_results": {
        f"toy_sweep_topk_ctx128_0101/resid_post_layer_2/trainer_{n}": {
            "l0": 20.0 + n, "frac_variance_explained": 0.875, "loss_original": 3.5, "hyperparameters": {"n_inputs": 1000},
        }
        for n in range(2)
    },
}  # fmt: skip

LAYOUTS: dict[str, Any] = {
    "core": SAEBENCH,
    "today": TODAY,
    "today, named": {NAME: AUTOINTERP, f"{RELEASE}_other": {**AUTOINTERP, "sae_lens_id": "other"}},
    "eval_results": INSTANCE,
    "eval_results, named": {NAME: INSTANCE, "custom_eval_config": _CONFIG},
    "eval_results of absorption": ABSORPTION,
    "eval_results of MDL": MDL,
    "autointerp_metrics": {NAME: {"autointerp_metrics": {"autointerp_score": 0.75}}},
    "custom_eval_results": CUSTOM,
    "basic_eval_results": BASIC,
    "a list": [SAEBENCH, INSTANCE, {NAME: AUTOINTERP}],
}
