"""Answers are the model's: no field of its generation config gets into them, and all who write end them by one rule."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, WatermarkingConfig

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.generation import Stops, generate, ignored_generation_settings, prompt_ids
from latentbench.interventions.rollouts import Sampling, answers
from latentbench_adapters.lm_eval.steered_model import SteeredLM
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.steering import language_model
from tests.support.writing import NEW, PROMPTS, WAYS, evaluated, greedy_ids, rolled_out

pytestmark = pytest.mark.usefixtures("one_thread")

REAL = Path(__file__).parents[3] / "shared/real"
WORDS = list(range(3, 60))
FIELDS: Mapping[str, Any] = {
    "max_length": 5,
    "max_new_tokens": 2,
    "min_length": 40,
    "min_new_tokens": 30,
    "early_stopping": True,
    "max_time": 1e-9,
    "stop_strings": ["w"],
    "do_sample": True,
    "num_beams": 3,
    "use_mtp": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "max_cache_len": 4,
    "temperature": 7.0,
    "top_k": 2,
    "top_p": 0.1,
    "min_p": 0.9,
    "top_h": 0.1,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.9,
    "eta_cutoff": 0.9,
    "repetition_penalty": 50.0,
    "encoder_repetition_penalty": 50.0,
    "length_penalty": -3.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[word] for word in WORDS],
    "renormalize_logits": True,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 50.0),
    "suppress_tokens": WORDS,
    "begin_suppress_tokens": WORDS,
    "sequence_bias": [[[7], 100.0]],
    "token_healing": True,
    "guidance_scale": 9.0,
    "watermarking_config": WatermarkingConfig(bias=50.0),
    "num_return_sequences": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "pad_token_id": 10**6,
    "bos_token_id": 10**6,
    "eos_token_id": [1, 10**6],  # what the model lists is kept, but the end token it cannot write is none
    "decoder_start_token_id": 10**6,
    "encoder_no_repeat_ngram_size": 1,
    "is_assistant": True,
    "num_assistant_tokens": 2,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "assistant_lookbehind": 2,
    "target_lookbehind": 2,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "prompt_lookup_num_tokens": 2,
    "max_matching_ngram_size": 1,
    "assistant_early_exit": 1,
    "compile_config": CompileConfig(),
    "disable_compile": True,
    "continuous_batching_config": {"block_size": 2},
    "low_memory": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "diversity_penalty": 5.0,
    "num_beam_groups": 3,
    "constraints": [7],
    "force_words_ids": [[7]],
    "prefill_chunk_size": 1,
    "an_entry_of_somebodys_own": 5,
}
"""A value of every field of a generation config that is not its default."""
NO_SETTINGS = {"transformers_version", "_from_model_config"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model("llama", torch.float32)


@pytest.fixture(scope="module")
def plain(lm: LanguageModel) -> Mapping[str, Any]:
    """What is written where the model's generation config says nothing but its tokens."""
    return {name: way(lm) for name, way in WAYS.items()}


@pytest.fixture
def own(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model's generation config, to be changed: as if it had been read from a file."""
    monkeypatch.setattr(lm.model, "generation_config", copy.deepcopy(lm.model.generation_config))
    return lm.model.generation_config


def test_every_field_of_the_installed_version_is_tried() -> None:
    assert set(vars(GenerationConfig())) - NO_SETTINGS <= FIELDS.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_of_the_models_own_gets_into_what_is_written(
    field: str, lm: LanguageModel, plain: Mapping[str, Any], own: Any
) -> None:
    setattr(own, field, FIELDS[field])
    before = dict(vars(own))
    assert {name: way(lm) for name, way in WAYS.items()} == plain
    assert lm.model.generation_config is own
    assert vars(own) == before


@pytest.mark.parametrize(
    "field",
    ["max_time", "num_beams", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
     "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "return_dict_in_generate",
     "num_return_sequences", "watermarking_config", "forced_eos_token_id", "exponential_decay_length_penalty"],
)  # fmt: skip
def test_left_to_transformers_they_would(field: str, lm: LanguageModel, own: Any) -> None:
    """Why: `generate()` fills what its caller leaves open from them, or fails by them."""
    (ids,) = prompt_ids(lm, [PROMPTS[0]])
    model: Any = lm.model

    def said() -> Any:
        made = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=1)
        return made.tolist() if isinstance(made, torch.Tensor) else type(made).__name__

    usual = said()
    setattr(own, field, FIELDS[field])
    with contextlib.suppress(ValueError, RuntimeError):
        assert said() != usual
    assert generate(lm, torch.tensor([ids]), torch.ones(1, len(ids)), max_new_tokens=30).tolist() == usual


def test_settings_that_are_not_applied_are_named(lm: LanguageModel, own: Any) -> None:
    assert ignored_generation_settings(lm) == {}
    own.do_sample, own.temperature, own.top_p, own.top_k = True, 0.7, 0.8, 20  # usual, and stated by every caller
    own.num_beams, own.length_penalty = 1, 1.0  # neutral
    assert ignored_generation_settings(lm) == {}
    own.repetition_penalty, own.no_repeat_ngram_size = 1.05, 3
    assert ignored_generation_settings(lm) == {"no_repeat_ngram_size": 3, "repetition_penalty": 1.05}


def test_settings_in_the_files_of_a_model_are_read_and_not_applied(tiny_model: Path, tmp_path: Path) -> None:
    """As before, but through loading: a `generation_config.json`, and a `config.json` of the old kind without one."""
    settings = {"num_beams": 3, "no_repeat_ngram_size": 1, "repetition_penalty": 9.0, "return_dict_in_generate": True}
    for name, file in (("new", "generation_config.json"), ("old", "config.json")):
        folder = Path(shutil.copytree(tiny_model, tmp_path / name))
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(known | settings))
        if name == "old":
            (folder / "generation_config.json").unlink()

    def said(folder: Path) -> Any:
        loaded = TransformersModel(id=str(folder)).load(Roots(tmp_path, (folder,)), torch.device("cpu"))
        return evaluated(loaded), rolled_out(loaded)

    assert said(tmp_path / "new") == said(tmp_path / "old") == said(tiny_model)


# -- where an answer ends ---------------------------------------------------------------------------------------------


def test_all_end_tokens_of_a_chat_model_end_an_answer(lm: LanguageModel, own: Any) -> None:
    written = {prompt: greedy_ids(lm, prompt, NEW) for prompt in PROMPTS}
    own.eos_token_id = [1, written[PROMPTS[0]][2], 10**6]
    for prompt, (_, tokens, truncated), (_, ids, cut) in zip(PROMPTS, evaluated(lm), rolled_out(lm)[::2], strict=True):
        end = next((n for n, token in enumerate(written[prompt]) if token in own.eos_token_id), None)
        assert ids == written[prompt][: None if end is None else end + 1]
        assert tokens == (NEW if end is None else end)
        assert truncated is cut is (end is None)
    assert not evaluated(lm)[0][2]


@pytest.mark.parametrize("special", [True, False])
def test_training_and_evaluation_stop_at_the_same_texts(special: bool) -> None:
    """A stop text that is a special token stops as that token, one that is a word stops as text."""
    lm = language_model("llama", torch.float32)
    word = greedy_ids(lm, PROMPTS[0], NEW)[2]
    name = lm.tokenizer.convert_ids_to_tokens(word)
    if special:
        lm.tokenizer.add_tokens([name], special_tokens=True)  # the id it had, but decoding leaves it out
        assert lm.tokenizer.convert_tokens_to_ids(name) == word
        assert name not in lm.tokenizer.decode([word], skip_special_tokens=True)
    free, stopped = evaluated(lm), evaluated(lm, until=(name,))
    assert free[0][2]
    assert not stopped[0][2]
    rolled = rolled_out(lm, until=(name,))[::2]
    assert [text.strip() for text, *_ in rolled] == [text.strip() for text, *_ in stopped]
    assert [truncated for *_, truncated in rolled] == [truncated for *_, truncated in stopped]
    assert [len(ids) for _, ids, _ in rolled] == [
        tokens + (special and not truncated) for _, tokens, truncated in stopped
    ]


def test_stop_texts_need_no_token_borders(lm: LanguageModel) -> None:
    ids = [4, 50, 31]
    stops = Stops(lm, ["0 w", "w31 w"])
    assert lm.tokenizer.decode(ids) == "w4 w50 w31"
    assert stops.found([ids[:1], ids[:2], ids]) == [False, False, True]
    assert stops.cut("w4 w50 w31") == "w4 w5"
    assert Stops(lm, []).found([ids]) == [False]
    assert Stops(lm, ["</s>"]).tokens == {1}


# -- where the context is full ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short() -> LanguageModel:
    """GPT-2, which knows no position behind its last, with a context of 12."""
    from tests.support import steering

    config = copy.deepcopy(steering.CONFIGS["gpt2"])
    config.n_positions = 12
    model = steering.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return LanguageModel(model, steering.words_tokenizer(), torch.device("cpu"))


def test_rollouts_end_where_the_context_is_full(short: LanguageModel) -> None:
    """An answer is what it is without its neighbours, and has a token for every place that is left."""
    prompts = [" ".join(["w9"] * n) for n in (1, 8, 12, 11)]
    for made, prompt in zip(answers(short, prompts[:2] + prompts[3:], Sampling(9)), (1, 8, 11), strict=True):
        room = min(9, 12 - prompt)
        expected = greedy_ids(short, " ".join(["w9"] * prompt), room)
        assert (made.ids, made.truncated) == (expected, True)
    with pytest.raises(InvalidInput, match=r"a prompt of 12 tokens leaves no room .* context of 12"):
        answers(short, prompts, Sampling(9))


def test_what_does_not_fit_is_cut_and_counted_or_refused(short: LanguageModel) -> None:
    from lm_eval.api.instance import Instance

    from latentbench.flow.effects import write
    from latentbench.interventions.intervention import Untouched

    def scored(context: int, more: int) -> tuple[float, int]:
        asked = Instance("loglikelihood", {}, ("w9 " * context, " ".join(["w8"] * more)), 0)
        model = SteeredLM(short)
        ((value, _),) = model.loglikelihood([asked], disable_tqdm=True)
        return value, model.shortened

    assert scored(5, 4)[1] == 0
    assert scored(40, 4) == (pytest.approx(scored(9, 4)[0], rel=1e-6), 1)
    with pytest.raises(InvalidInput, match=r"a choice has 13 tokens; this model reads 1 to 12"):
        scored(3, 13)
    with pytest.raises(InvalidInput, match="a prompt of 4 tokens leaves no room for 9 more in the context of 12"):
        write(short, torch.ones(1, 4).long(), Untouched(), tokens=9, temperature=1.0, top_p=1.0, seed=0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real model is not here")
def test_a_real_model_writes_the_same_whatever_its_generation_config_says() -> None:
    lm = TransformersModel(id="./stories260k").load(Roots(REAL), torch.device("cpu"))
    prompts = ["Once upon a time", "Lily and Ben went to the park. They"]

    def said() -> Any:
        return [answer.ids for answer in answers(lm, prompts, Sampling(40))], evaluated(lm, new=40)

    plain = said()
    assert plain[0] == [greedy_ids(lm, prompt, 40) for prompt in prompts]
    lm.model.generation_config.update(repetition_penalty=1.3, no_repeat_ngram_size=2, num_beams=4)
    assert said() == plain
