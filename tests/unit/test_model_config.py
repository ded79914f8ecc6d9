"""What config.json states is read right for every architecture, and numbers that no model has are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from latentbench.activations.model_config import check_files, facts_of
from latentbench.core.errors import RefusedFile


def test_the_shape_of_every_decoder_that_transformers_knows_is_read_right() -> None:
    """Its own classes say what each configuration means; what is not understood is refused, never read wrong."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ALONE
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as SIGHTED

    names = ("hidden_size", "num_hidden_layers", "vocab_size")
    read, refused = 0, set()
    for kind in sorted({*ALONE, *SIGHTED}):
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # a few have no defaults that fit together
            continue
        text = config.get_text_config(decoder=True)
        try:
            facts = facts_of(json.loads(json.dumps(config.to_dict(), default=str)), kind)
        except RefusedFile:
            refused.add(kind)
            continue
        if kind != "longcat_flash":  # whose layers are pairs: its list of blocks is half as long as it says
            assert [facts.d_model, facts.layers, facts.vocabulary] == [getattr(text, name) for name in names], kind
        if facts.context is not None:
            assert facts.context in (getattr(text, "max_position_embeddings", None), getattr(text, "max_seq_len", None))
        read += 1
    assert read > 150
    assert not refused & {
        "llama",
        "gpt2",
        "mpt",
        "dbrx",
        "gemma3",
        "qwen3",
        "bloom",
        "falcon",
        "opt",
        "phi",
        "rwkv",
        "doge",
        "llava",
        "mistral3",
        "qwen2_vl",
        "qwen3_vl",
        "paligemma",
        "nemotron_h",
    }
    assert len(refused & {*ALONE}) < 20
    # What is no decoder of text, or hides it deeper than in a `text_config`.
    assert refused - {*ALONE} <= {
        *("florence2", "pp_formulanet", "t5gemma2", "vision-encoder-decoder"),
        *("kosmos-2", "kosmos-2.5", "nemo_speechlm", "pi0", "qwen2_5_omni", "qwen3_omni_moe"),
    }


LLAMA = {"hidden_size": 4, "num_hidden_layers": 2, "vocab_size": 9}


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in LLAMA for value in (True, 0, -1, 2.0, "4", [], 10**12, 2**70, 10**30)),
        {"num_hidden_layers": 10**9},
        {"intermediate_size": 10**30},
        {"text_config": []},
        {"text_config": {"hidden_size": 4}},
        {"vision_config": {"num_hidden_layers": 10**9}},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_numbers_that_no_model_has_are_refused(change: dict[str, Any]) -> None:
    facts_of(LLAMA, "x")
    with pytest.raises(RefusedFile, match=r"^x: config\.json "):
        facts_of(LLAMA | change, "x")


def test_a_nested_configuration_may_leave_its_vocabulary_to_its_architecture() -> None:
    """As Gemma 3's does; transformers fills it in."""
    nested = {"hidden_size": 2560, "num_hidden_layers": 34}
    assert facts_of({"text_config": nested}, "x").vocabulary is None
    assert facts_of({"text_config": nested, "vocab_size": 7}, "x").vocabulary == 7
    mpt = facts_of({"d_model": 8, "n_layers": 3, "vocab_size": 5, "max_seq_len": 64}, "x")
    assert (mpt.d_model, mpt.layers, mpt.vocabulary, mpt.context) == (8, 3, 5, 64)


@pytest.mark.parametrize("stated", [True, 0, -1, 2.0, "long", []], ids=str)
def test_what_is_no_number_of_positions_states_no_limit(stated: Any) -> None:
    assert facts_of(LLAMA | {"max_position_embeddings": stated}, "x").context is None


def test_what_would_be_waited_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to("absent")
    check_files(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(RefusedFile, match=r"tokenizer\.json is no file but a pipe"):
        check_files(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").symlink_to("/dev/zero")
    with pytest.raises(RefusedFile, match=r"vocab\.json is no file but"):
        check_files(tmp_path)
